// What a thread does to its share of a tile of 64 rows of the stream, for kernels of four warps a
// tile whose accumulators are those of device/wgmma_sm90.cuh. A thread ends with four neighbouring
// columns of each 16, so every access to memory is of whole sectors.
#pragma once

#include <cstdint>

#include "device/cluster_sm90.cuh"
#include "ops/linear/row_end_sm90.h"
#include "ops/linear/row_parts.cuh"
#include "ops/linear/words_sm90.cuh"
#include "ops/residual_norm/dropout.cuh"

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)

namespace longstride::ops::cuda::row_end {

using device::sm90::Address;

// Rows `row` and `row` + 8 (`below` 0 and 1), of each the columns `column` + 16 m + 0..3.
struct Share {
  std::int64_t row, rows;
  int column;
  __device__ bool has(int below) const { return row + 8 * below < rows; }
};

// Where the share of a matrix begins in its two rows. Behind the last row it is the last, which may
// be read for nothing. The compiler is not to know how it came about: else it makes each of the
// addresses that follow anew, of 64 bits each.
template <class T>
struct Lines {
  T* at[2];
  __device__ Lines(const Share& share, T* data, std::int64_t stride) {
#pragma unroll
    for (int below = 0; below < 2; ++below) {
      at[below] = data + min(share.row + 8 * below, share.rows - 1) * stride + share.column;
      asm volatile("" : "+l"(at[below]));
    }
  }
};

// Volatile: in the order of the program, which says how much is under way at a time.
__device__ inline void read(float (&to)[4], const float* from) {
  asm volatile("ld.global.v4.f32 {%0, %1, %2, %3}, [%4];"
               : "=f"(to[0]), "=f"(to[1]), "=f"(to[2]), "=f"(to[3])
               : "l"(__cvta_generic_to_global(from)));
}
__device__ inline uint2 read(const void* from) {
  uint2 words;
  asm volatile("ld.global.v2.b32 {%0, %1}, [%2];"
               : "=r"(words.x), "=r"(words.y)
               : "l"(__cvta_generic_to_global(from)));
  return words;
}

// Without a branch, so that the compiler mixes what is independent.
__device__ inline void write(float* to, const float (&v)[4], bool wanted) {
  asm volatile(
      "{\n.reg .pred wanted;\nsetp.ne.b32 wanted, %0, 0;\n"
      "@wanted st.global.v4.f32 [%1], {%2, %3, %4, %5};\n}\n" ::"r"(static_cast<int>(wanted)),
      "l"(__cvta_generic_to_global(to)), "f"(v[0]), "f"(v[1]), "f"(v[2]), "f"(v[3]));
}
template <class A>
__device__ void write(A* to, const float (&v)[4], bool wanted) {
  asm volatile(
      "{\n.reg .pred wanted;\nsetp.ne.b32 wanted, %0, 0;\n"
      "@wanted st.global.v2.b32 [%1], {%2, %3};\n}\n" ::"r"(static_cast<int>(wanted)),
      "l"(__cvta_generic_to_global(to)), "r"(pack<A>(v[0], v[1])), "r"(pack<A>(v[2], v[3])));
}

// Which of a row of `columns` are kept: bit 4 m + i.
__device__ inline void draw(std::uint32_t& kept, const Draws& draws, const DrawKey& key,
                            const Share& share, int columns, int below) {
  kept = ~0u;
  if (draws.threshold == 0) return;
  const std::int64_t at = (draws.first + (share.row + 8 * below) * columns + share.column) / 4;
  kept = 0;
#pragma unroll
  for (int m = 0; m < 8; ++m) {
    const uint4 words = draw4(draws, key, at + 4 * m);
    kept |= (words.x >= draws.threshold ? 1u : 0u) << (4 * m);
    kept |= (words.y >= draws.threshold ? 2u : 0u) << (4 * m);
    kept |= (words.z >= draws.threshold ? 4u : 0u) << (4 * m);
    kept |= (words.w >= draws.threshold ? 8u : 0u) << (4 * m);
  }
}
__device__ inline float dropped(float x, std::uint32_t kept, int bit, float scale) {
  const float scaled = __fmul_rn(scale, x);
  return (kept >> bit & 1u) != 0 ? scaled : 0.0f;
}

// Where number i of four m of a row is among the accumulators.
__device__ inline constexpr int place_of(int below, int m, int i) {
  return 8 * m + 4 * (i / 2) + 2 * below + i % 2;
}

// Four m of a row, the columns of a thread. kTrade: the products have the columns in their order,
// so that two threads trade: an even one takes the columns of both of the first eight, an odd one
// of the other eight. Else B's rows came in the order that suits.
template <bool kTrade, int kCount>
__device__ void gather(float (&v)[4], const float (&d)[kCount], int below, int m, int lane) {
#pragma unroll
  for (int i = 0; i < 4; ++i) v[i] = d[place_of(below, m, i)];
  if constexpr (!kTrade) return;
  const bool odd = lane % 2 != 0;
  const float got0 = __shfl_xor_sync(0xffffffffu, odd ? v[0] : v[2], 1);
  const float got1 = __shfl_xor_sync(0xffffffffu, odd ? v[1] : v[3], 1);
  v[0] = odd ? got0 : v[0], v[1] = odd ? got1 : v[1];
  v[2] = odd ? v[2] : got0, v[3] = odd ? v[3] : got1;
}

// Of shared memory. Volatile: else the compiler keeps what it read for the one row for the other.
__device__ inline void read4(float (&to)[4], Address from) {
  asm volatile("ld.shared.v4.f32 {%0, %1, %2, %3}, [%4];"
               : "=f"(to[0]), "=f"(to[1]), "=f"(to[2]), "=f"(to[3])
               : "r"(from));
}

// Two numbers of each row to the kParts blocks that have its columns, and those of all from them.
// All four threads of a row hold the same; each tells one block.
template <int kParts>
struct Exchange {
  Address table, told;  // of this tile's turn: [kParts][kRows] pairs, a barrier
  unsigned parity;
  unsigned first, place;  // rank of the block with the first columns; this one's distance from it
  int thread;

  __device__ Address at(unsigned part, int below) const {
    const int row = thread / 32 * 16 + thread % 32 / 4 + 8 * below;
    return table + (part * kRows + static_cast<unsigned>(row)) * 8;
  }
  __device__ void tell(const float2 (&mine)[2]) const {
    const auto to = static_cast<unsigned>(thread % 4);
    if (thread == 0) device::sm90::arrive_expecting(told, kParts * kRows * 8);
    if (to >= kParts) return;
#pragma unroll
    for (int below = 0; below < 2; ++below)
      device::sm90::store_in(first + to, at(place, below), mine[below], told);
  }
  __device__ void hear(float2 (&all)[2][kParts]) const {
    device::sm90::wait_for(told, parity);
#pragma unroll
    for (int below = 0; below < 2; ++below)
#pragma unroll
      for (unsigned of = 0; of < kParts; ++of)
        asm volatile("ld.shared.v2.f32 {%0, %1}, [%2];"
                     : "=f"(all[below][of].x), "=f"(all[below][of].y)
                     : "r"(at(of, below))
                     : "memory");
  }
};

}  // namespace longstride::ops::cuda::row_end

#endif
