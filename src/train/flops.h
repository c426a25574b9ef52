// Needed work of a training step, and what this machine can do at most.
#pragma once

#include <cstdint>

#include "longstride/config.h"
#include "model/parameters.h"

namespace longstride {

// Floating point operations of one training step for one symbol: 6 a weight of each matrix product
// (2 forward, 4 backward) and 6 (d_qk + d_v) a kept pair of each head. Recomputation, norms and
// look-ups are not counted.
double training_flops(const ModelConfig& model, const ParameterLayout& layout);

// Operations a second of a 1024^3 float32 matrix product, the best of a few runs (about 50 ms).
double measure_peak_flops();

}  // namespace longstride
