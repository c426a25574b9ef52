// The products of row_end_sm90.cuh, called from the host.
#pragma once

#include <cuda.h>

#include <cstdint>

#include "device/cuda.h"
#include "ops/residual_norm/draws.h"

namespace longstride::ops::cuda::row_end {

inline constexpr int kColumns = 128;  // of a row of 256 that a block has
inline constexpr int kRows = 64;      // of a tile

// What a row ends in.
template <class A>
struct RowEnds {
  std::int64_t rows = 0;
  float* stream = nullptr;  // h or dh
  std::int64_t stream_stride = 0;
  A* xhat = nullptr;           // forward
  const A* xhat_in = nullptr;  // backward
  std::int64_t xhat_stride = 0;
  float* rstd = nullptr;           // forward: [rows], or none
  const float* rstd_in = nullptr;  // backward
  const float* bias = nullptr;     // forward: [kColumns * blocks], or none
  float eps = 0;                   // forward
  A* dbranch = nullptr;            // backward, or none
  std::int64_t dbranch_stride = 0;
  Draws draws = {};
};

// kForward: rows of x times W, else rows of dy times W^T. left in boxes of kRows / 2 rows; weights
// in boxes of 64 rows, of W^T as `reordered` (linear_norm_cuda.cc) of 128. deep: terms of the sum /
// 64, rounded up, at most 8. Instances: bf16 and fp16.
template <class A, bool kForward>
void launch(device::Stream stream, const CUtensorMap& left, const CUtensorMap& weights,
            const RowEnds<A>& ends, int deep);

// The norm of the stream as it is, with the bits that launch<A, true> gives.
template <class A>
void launch_norm(device::Stream stream, const RowEnds<A>& ends);

}  // namespace longstride::ops::cuda::row_end
