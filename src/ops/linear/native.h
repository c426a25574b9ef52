// Products of bf16 by the instructions that some CPUs have for them (AVX512_BF16, AMX), through
// oneDNN. False: not done, nothing written (no such CPU, or not this shape); a function of shape
// and CPU alone.
#pragma once

#include "ops/linear/product.h"

namespace longstride::ops::cpu {

bool multiply_natively(const Product<bf16, float>& p);
bool multiply_natively(const Product<bf16, bf16>& p);

// t.c as multiply_tile; t.sums is left to the caller.
bool multiply_tile_natively(const GradientTile<bf16>& t);

}  // namespace longstride::ops::cpu
