// What kernels of attention backward are given, and what they share beside the walk.
#pragma once

#include "ops/attention/attention_backward_walk.h"
#include "ops/attention/attention_cuda.h"

namespace longstride::ops::cuda {

template <class A>
struct BackwardArguments {
  BackwardWalk walk;
  Heads<const A> q, k, v, dout;
  Heads<A> dq, dk, dv;
  const float2* rows = nullptr;  // [B, H, N] of {L log2 e, D}
  std::int32_t* done = nullptr;  // [shared tiles]: blocks that have added their dQ
  float* queries = nullptr;      // [shared tiles][tile.queries][padded qk_width], order of threads
  float* keys = nullptr;         // splits: [blocks][tile.keys][padded qk_width + v_width]
  float scale = 1;
  std::int32_t stores = 0;        // overwrites; else adds
  std::int32_t whole_pieces = 0;  // widths, strides and addresses allow moves of 16 bytes
};

// For QueryTiles, by all threads of a warp together.
struct WarpSearch {
  template <class Holds>
  __device__ __forceinline__ std::int32_t operator()(std::int32_t count, const Holds& holds) const {
    const auto lane = static_cast<std::int32_t>(threadIdx.x & 31);
    std::int32_t begin = 0, end = count;
    while (begin < end) {
      const std::int32_t step = (end - begin + 31) / 32, probe = begin + lane * step + step - 1;
      const unsigned found = __ballot_sync(0xffffffffu, probe >= end || holds(probe));
      const std::int32_t f = found == 0 ? 32 : __ffs(static_cast<int>(found)) - 1;
      end = smaller(end, begin + f * step + step - 1);
      begin = smaller(end, begin + f * step);
    }
    return begin;
  }
};

// By one thread: what all threads of the block wrote before the last barrier is seen by the block
// one thread of which waited for the value, after its next barrier.
__device__ __forceinline__ void publish(std::int32_t* counter, std::int32_t value) {
  asm volatile("st.release.gpu.global.s32 [%0], %1;" ::"l"(counter), "r"(value) : "memory");
}
__device__ __forceinline__ void wait_for(const std::int32_t* counter, std::int32_t value) {
  std::int32_t seen;
  do {
    asm volatile("ld.acquire.gpu.global.s32 %0, [%1];" : "=r"(seen) : "l"(counter) : "memory");
  } while (seen < value);
}

// What a block knows about the rows of a query tile; key indices count from the key tile's first.
template <int kQueries>
struct QueryRows {
  alignas(16) float2 row[kQueries];  // {L log2 e, D}
  alignas(16) int2 seen[kQueries];   // keys [x, y)
  // Of 16 rows each: some row sees a key of [x, y), all rows see the keys of [z, w).
  alignas(16) int4 of_sixteen[(kQueries + 15) / 16];
  std::int32_t before, behind;  // other key tiles that add to the same dQ
};

// By threads r = 0, 1, ..., whole warps.
template <int kQueries>
__device__ __forceinline__ void describe_row(const BackwardWalk& a, const KeyTile& tile,
                                             const QueryTiles& tiles, std::int32_t r,
                                             QueryRows<kQueries>& rows) {
  KeyRange keys;
  if (r < tiles.count) {
    const KeyRange seen = tiles.seen_by(tile, r);
    keys = tiles.inside(tile, seen);
    if (r == 0) rows.before = tiles.before(a, tile, seen);
    if (r == tiles.count - 1) rows.behind = tiles.behind(a, tile, seen);
  }
  if (r < kQueries) rows.seen[r] = {keys.begin, keys.end};
  constexpr std::int32_t kFar = 1 << 30;
  const bool empty = keys.empty();
  int4 all = {empty ? kFar : keys.begin, keys.end,
              empty || tile.part->masked != 0 ? kFar : keys.begin, empty ? 0 : keys.end};
#pragma unroll
  for (int distance = 8; distance > 0; distance /= 2) {
    all.x = smaller(all.x, __shfl_xor_sync(0xffffffffu, all.x, distance));
    all.y = larger(all.y, __shfl_xor_sync(0xffffffffu, all.y, distance));
    all.z = larger(all.z, __shfl_xor_sync(0xffffffffu, all.z, distance));
    all.w = smaller(all.w, __shfl_xor_sync(0xffffffffu, all.w, distance));
  }
  if (r % 16 == 0 && r < kQueries) rows.of_sixteen[r / 16] = all;
}

}  // namespace longstride::ops::cuda
