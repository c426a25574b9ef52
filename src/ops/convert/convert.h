// From float to bf16, each value to the nearest. Bound: memory, 6 bytes a value.
#pragma once

#include "tensor/bf16.h"
#include "tensor/tensor.h"

namespace longstride::ops {

void convert(Vector<const float> from, Vector<bf16> to);

}  // namespace longstride::ops
