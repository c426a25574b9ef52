// Tensor maps: how the copy engine of Hopper finds a box of an array of 2-byte numbers. A box lies
// in shared memory as rows of 64 numbers (128 bytes) with the 128-byte swizzle of wgmma_sm90.cuh;
// what lies outside the extents is read as zero and not written. Built with CUDA only.
#pragma once

#include <cuda.h>

#include <array>
#include <cstdint>

namespace longstride::device {

// Extent 0 is contiguous; strides[n] are elements from one index of extent n + 1 to the next,
// multiples of 8; the address is a multiple of 16 bytes. Boxes are 64 numbers of extent 0 by
// box[n] <= 256 of extent n + 1.
struct TensorShape {
  int rank = 2;
  std::array<std::int64_t, 5> extents{};
  std::array<std::int64_t, 4> strides{};
  std::array<int, 4> box{};
};

// A: bf16, fp16. Throws where the driver refuses.
template <class A>
CUtensorMap tensor_map(const A* data, const TensorShape& shape);

}  // namespace longstride::device
