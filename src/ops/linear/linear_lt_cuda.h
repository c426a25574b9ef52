// Products by cuBLASLt, in row-major terms.
#pragma once

#include <library_types.h>

#include <cstdint>

#include "ops/linear/linear_cuda.h"

namespace longstride::ops::cuda {

// result[rows, cols] = left right (+ bias) (+ result), `count` times with pointers `step` elements
// apart. A transposed operand is stored [inner, rows] or [cols, inner].
struct Product {
  cudaDataType type, result_type;
  std::int64_t rows = 0, cols = 0, inner = 0;
  const void *left = nullptr, *right = nullptr;
  void* result = nullptr;
  std::int64_t left_stride = 0, right_stride = 0, result_stride = 0;
  bool left_transposed = false, right_transposed = false;
  const void* bias = nullptr;  // [cols] of result_type, or null
  bool add = false;
  std::int64_t count = 1, left_step = 0, right_step = 0, result_step = 0;
};

// The first algorithm that the library's heuristic names for the shape, strides and alignments (at
// most 16 bytes of them are told). Sums of split products are made in a fixed order: the scheme
// that adds in place is not allowed.
void multiply(LinearContext& context, device::Stream stream, const Product& product);

// Device memory of the context that the steps of one operation share, beside the library's own.
inline constexpr std::int64_t kScratchFloats = std::int64_t{8} << 20;
float* scratch(LinearContext& context);

}  // namespace longstride::ops::cuda
