// How our own products on Hopper see matrices: boxes that the copy engine brings to shared memory.
#pragma once

#include "device/tensor_map.h"
#include "tensor/tensor.h"

namespace longstride::ops::cuda {

inline constexpr std::int64_t kLongestSum = 512;  // whose weights stay in shared memory
inline constexpr std::int64_t kMostRows = (std::int64_t{1} << 31) - 256;

// Boxes of 64 columns and `rows` rows.
template <class A>
CUtensorMap map_of(Matrix<const A> m, int rows = 64) {
  return device::tensor_map(
      m.data, {.rank = 2, .extents = {m.cols, m.rows}, .strides = {m.stride}, .box = {rows}});
}

// Boxes of 128 rows and 64 columns; of each 8 kPairs rows, row 2 kPairs u + 2 g + e comes as
// 8 g + 2 u + e.
template <int kPairs, class A>
CUtensorMap reordered(Matrix<const A> m) {
  return device::tensor_map(
      m.data, {.rank = 5,
               .extents = {m.cols, 2, 4, kPairs, m.rows / (8 * kPairs)},
               .strides = {m.stride, 2 * kPairs * m.stride, 2 * m.stride, 8 * kPairs * m.stride},
               .box = {2, 4, kPairs, 16 / kPairs}});
}

// Tiles of 64 that a sum takes.
inline int deep(std::int64_t inner) { return static_cast<int>((inner + 63) / 64); }

}  // namespace longstride::ops::cuda
