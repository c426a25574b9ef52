// Needed work of a training step.
#pragma once

#include <cstdint>

#include "longstride/config.h"
#include "model/parameters.h"

namespace longstride {

// Floating point operations of one training step for one symbol: 6 a weight of each matrix product
// (2 forward, 4 backward) and 6 (d_qk + d_v) a kept pair of each head. Recomputation, norms and
// look-ups are not counted.
double training_flops(const ModelConfig& model, const ParameterLayout& layout);

}  // namespace longstride
