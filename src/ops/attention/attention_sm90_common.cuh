// What the Hopper kernels of attention share on the device: numbers in pairs, rings of tiles,
// masks, stores.
#pragma once

#include <cmath>
#include <type_traits>

#include "device/number.cuh"
#include "device/tma_sm90.cuh"
#include "device/wgmma_sm90.cuh"
#include "ops/attention/attention_sm90_tiles.cuh"
#include "tensor/tensor.h"

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)

namespace longstride::ops::cuda::sm90 {

using namespace device::sm90;  // NOLINT: the verbs of this architecture

__device__ inline float exp2_of(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
template <class A>
__device__ std::uint32_t packed(float low, float high) {
  std::uint32_t both;
  if constexpr (std::is_same_v<A, bf16>)
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(both) : "f"(high), "f"(low));
  else
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(both) : "f"(high), "f"(low));
  return both;
}
template <class A>
__device__ float2 unpacked(std::uint32_t both) {
  A low, high;
  low.bits = static_cast<std::uint16_t>(both);
  high.bits = static_cast<std::uint16_t>(both >> 16);
  return {device::to_float(low), device::to_float(high)};
}

template <class A>
__device__ A* row_of(const Heads<A>& x, std::int64_t batch, std::int64_t i, std::int64_t head) {
  return x.data + (batch * x.length + i) * x.row_stride + head * x.width;
}

// Of four threads u = 0 .. 3, each with x[k]: afterwards thread u has what thread k had as x[u].
__device__ inline void transpose_quad(std::uint32_t (&x)[4], int u) {
#pragma unroll
  for (int bit = 1; bit <= 2; bit *= 2)
#pragma unroll
    for (int k = 0; k < 4; ++k) {
      if (k & bit) continue;
      const bool upper = u & bit;
      const std::uint32_t other = __shfl_xor_sync(0xffffffffu, upper ? x[k] : x[k | bit], bit);
      (upper ? x[k] : x[k | bit]) = other;
    }
}

// Number of the warpgroup, known to be the same in all threads of it.
__device__ inline int warpgroup() {
  return __shfl_sync(0xffffffffu, static_cast<int>(threadIdx.x) / 128, 0);
}

// What x is made of is made before the waits that follow: ptxas would move it behind them, where
// nothing runs beside it. (An instruction that never happens, but depends on x and keeps its
// place.)
__device__ inline void made(float x) {
  asm volatile("{\n.reg .pred p;\nsetp.eq.f32 p, %0, 0fBF800000;\n@p nanosleep.u32 0;\n}\n" ::"f"(x)
               : "memory");
}

// By all threads of the block.
__device__ inline void clear_shared(Address from, int bytes) {
  for (int at = static_cast<int>(threadIdx.x) * 16; at < bytes;
       at += static_cast<int>(blockDim.x) * 16)
    asm volatile("st.shared.v4.u32 [%0], {%1, %1, %1, %1};" ::"r"(from + at), "r"(0) : "memory");
}

// One lane of each warp says that the warp is done with what the barrier guards.
__device__ inline void release(std::uint64_t& barrier) {
  __syncwarp();
  if (threadIdx.x % 32 == 0) arrive(address_of(&barrier));
}

// A place in a ring of tiles and the parity of its turn.
template <int kStages>
struct Ring {
  int stage = 0;
  unsigned parity = 0;
  __device__ void advance() {
    if (++stage == kStages) stage = 0, parity ^= 1;
  }
};

// The works of this thread block, in order.
struct Turns {
  const Order& order;
  std::int32_t round = -1;
  Order::Work work{};
  __device__ explicit Turns(const Order& all) : order(all) {}
  __device__ bool next() {
    const auto block = static_cast<std::int32_t>(blockIdx.x);
    const auto blocks = static_cast<std::int32_t>(gridDim.x);
    while (++round * blocks < order.size()) {
      const std::int32_t index = order.index(round, block, blocks);
      if (index >= order.size()) continue;
      work = order.at(index);
      return true;
    }
    return false;
  }
};

// At which ends of a tile some pairs of a warpgroup are not kept.
enum class Cut { none, end, begin, both };
// Bit 0: nothing is cut off at the end, bit 1: nothing at the beginning.
__device__ inline Cut cut_of(unsigned bits) { return static_cast<Cut>(3 - (bits & 3)); }

// Thread u of four holds what belongs to row u & 1 of two: both, for all four.
__device__ inline void share_rows(std::int32_t mine, std::int32_t (&rows)[2]) {
  rows[0] = __shfl_sync(0xffffffffu, mine, 0, 4);
  rows[1] = __shfl_sync(0xffffffffu, mine, 1, 4);
}

// -inf outside [from, to) of both rows; columns are counted from 2 u. Registers as of wgmma.
template <int kCount>
__device__ void cut_off(float (&s)[kCount], Cut cut, const std::int32_t (&from)[2],
                        const std::int32_t (&to)[2]) {
  if (cut != Cut::begin) {
#pragma unroll
    for (int j = 0; j < kCount; ++j)
      if (8 * (j / 4) + j % 2 >= to[j / 2 % 2]) s[j] = -INFINITY;
  }
  if (cut != Cut::end) {
#pragma unroll
    for (int j = 0; j < kCount; ++j)
      if (8 * (j / 4) + j % 2 < from[j / 2 % 2]) s[j] = -INFINITY;
  }
}

// The row of h = 0 or 1 of 64 x kWidth sums, times `factor`, by its four threads u.
template <class A, int kWidth>
__device__ void store_row(A* to, int width, bool inside, int h, int u, float factor,
                          const float (&sums)[kWidth / 2]) {
#pragma unroll
  for (int j = 0; j < kWidth / 8; j += 4) {
    std::uint32_t x[4];
#pragma unroll
    for (int k = 0; k < 4; ++k)
      x[k] = packed<A>(sums[4 * (j + k) + 2 * h] * factor, sums[4 * (j + k) + 2 * h + 1] * factor);
    transpose_quad(x, u);
    const int column = 8 * (j + u);
    if (inside && column < width)
      *reinterpret_cast<uint4*>(to + column) = make_uint4(x[0], x[1], x[2], x[3]);
  }
}

}  // namespace longstride::ops::cuda::sm90

#endif
