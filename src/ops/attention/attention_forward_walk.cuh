// What a block of attention forward walks: its tile of queries and the tiles of keys that it sees.
#pragma once

#include "base/integers.h"
#include "longstride/error.h"
#include "ops/attention/attention_forward_launch.h"

namespace longstride::ops::cuda {

// Heads::at() for kernels.
template <class T>
__device__ T* row_of(const Heads<T>& x, std::int64_t b, std::int64_t i, std::int64_t h) {
  return x.data + (b * x.length + i) * x.row_stride + h * x.width;
}

// Queries lane + (first + r) stride, r < count, of one head.
struct QueryTile {
  HeadPass pass;
  std::int64_t batch = 0;
  std::int32_t lane = 0, first = 0, count = 0, stride = 1;
  __device__ std::int32_t position(std::int32_t r) const { return lane + (first + r) * stride; }
};

// Heads change fastest, then lanes: their rows are neighbours in memory. Tiles change last, those
// with most keys first.
template <class A>
__device__ QueryTile query_tile(const ForwardArguments<A>& a, std::int32_t rows) {
  QueryTile tile;
  auto block = static_cast<std::int32_t>(blockIdx.x);
  const auto take = [&](const Divider& n) {
    const std::int32_t rest = n.quotient(block), digit = block - rest * n.by;
    block = rest;
    return digit;
  };
  tile.pass = a.passes[take(a.by_heads)];
  tile.lane = take(a.by_lanes);
  tile.batch = take(a.by_batch);
  tile.first = (a.tiles - 1 - block) * rows;
  tile.stride = a.stride;
  const std::int32_t steps = (a.length - tile.lane + a.stride - 1) / a.stride;
  tile.count = smaller(rows, steps - tile.first);
  return tile;
}

// Tells the compiler that a pointer which was kept in shared memory is not to it.
template <class T>
__device__ __forceinline__ const T* in_memory(const T* p) {
  __builtin_assume(__isGlobal(p));
  return p;
}

// Key indices [first, end) of a range, at most one tile of them.
struct KeySlot {
  const DevicePart* part;  // null: behind the last
  std::int32_t lane;
  std::int32_t first, end;  // `end` is that of the range
  std::int32_t range;       // number of the range
};

// The tiles of keys of a query tile, in order. Lives in shared memory: one warp walks, and all read
// the slots that it leaves in a ring, and where the keys lie.
template <int kKeys, int kSlots>
struct KeyWalk {
  TileWalk walk;
  KeySlot ahead;  // what was written last, and the keys of its range
  KeyMap map;
  KeySlot ring[kSlots];
  std::int32_t position[kSlots][kKeys];  // negative: no key

  // By one thread.
  __device__ __forceinline__ void begin(const QueryTile& tile, const DevicePart* parts) {
    walk = TileWalk(parts + tile.pass.first_part, tile.pass.parts, tile.pass.pass, tile.position(0),
                    tile.position(tile.count - 1));
    ahead.part = nullptr;
    ahead.first = ahead.end = 0;
    ahead.range = -1;
  }

  // Writes slot n, by all threads of a warp; the slots before it are written.
  __device__ __forceinline__ void write(int n) {
    const int thread = static_cast<int>(threadIdx.x & 31);
    const bool done = ahead.part == nullptr && ahead.range >= 0;
    const bool within = ahead.first + kKeys < ahead.end;
    __syncwarp();
    if (within) {
      if (thread == 0) ahead.first += kKeys;
    } else if (!done) {
      TileWalk w = walk;
      KeyRange keys;
      while (w.advance()) {
        const KeyRange seen = reach(*in_memory(w.part), w.lane, thread == 0 ? w.from : w.to);
        keys.begin = __shfl_sync(0xffffffffu, seen.begin, 0);
        keys.end = __shfl_sync(0xffffffffu, seen.end, 1);
        if (!keys.empty()) break;
      }
      __syncwarp();
      if (thread == 0) {
        walk = w;
        ahead.part = keys.empty() ? nullptr : w.part;
        ahead.lane = w.lane;
        ahead.first = keys.begin;
        ahead.end = keys.end;
        ++ahead.range;
        if (!keys.empty()) map = key_map(*w.part, w.lane);
      }
    }
    __syncwarp();
    if (thread == 0) ring[n % kSlots] = ahead;
    if (ahead.part != nullptr)
#pragma unroll
      for (int r = thread; r < kKeys; r += 32) {
        const std::int32_t t = ahead.first + r;
        position[n % kSlots][r] = t < ahead.end ? map.position(t) : -1;
      }
  }
};

// One bit a pair, for parts that decide pair by pair, of rows [row, row + kRows) of the tile and
// kKeys keys from index `first` on, by one warp: words[row][key / 32].
template <int kRows, int kKeys, class Position>
__device__ __forceinline__ void make_mask(std::uint32_t* words, const DevicePart& part,
                                          std::int32_t part_lane, std::int32_t first,
                                          const Position& position, const QueryTile& tile,
                                          int row) {
  const int lane = static_cast<int>(threadIdx.x & 31);
#pragma unroll 1
  for (int r = 0; r < kRows; ++r) {
    KeyRange seen;
    const std::int32_t i = row + r < tile.count ? tile.position(row + r) : 0;
    if (row + r < tile.count) seen = reach_in_lane(part, part_lane, i);
#pragma unroll 1
    for (int w = 0; w < kKeys / 32; ++w) {
      const std::int32_t t = first + w * 32 + lane;
      const bool kept = t >= seen.begin && t < seen.end && keeps(part, i, position(w * 32 + lane));
      const std::uint32_t word = __ballot_sync(0xffffffffu, kept);
      if (lane == 0) words[r * (kKeys / 32) + w] = word;
    }
  }
  __syncwarp();
}

// How a row ends: O = before O + here (the sum of P V), where `earlier` is its L of earlier passes.
struct RowEnd {
  float before = 0, here = 0, lse = -INFINITY;
  __device__ __forceinline__ RowEnd(float max, float sum, float earlier) {
    if (sum != 0) {
      here = 1 / sum;
      lse = max + logf(sum);
    }
    if (earlier == -INFINITY) return;
    const float top = fmaxf(lse, earlier);
    const float old = expf(earlier - top), mine = expf(lse - top), total = old + mine;
    before = old / total;
    here *= mine / total;
    lse = top + logf(total);
  }
};

template <class Kernel, class A>
void launch_forward(device::Stream stream, Kernel kernel, ForwardArguments<A> a, int rows,
                    int threads, int bytes) {
  const std::int64_t steps = ceil_div(a.length, a.stride);
  a.tiles = static_cast<std::int32_t>(ceil_div(steps, rows));
  const std::int64_t blocks = a.q.batch * a.heads * a.lanes * a.tiles;
  if (blocks >= std::int64_t{1} << 31)
    throw invalid_argument("attention: ", blocks, " blocks of threads, want less than 2^31");
  a.by_heads = divider(a.heads);
  a.by_lanes = divider(a.lanes);
  a.by_batch = divider(a.q.batch);
  device::check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes),
                "attention forward");
  kernel<<<static_cast<unsigned>(blocks), threads, bytes, stream>>>(a);
  device::launched(stream, "attention forward [", a.q.batch, ", ", a.length, ", ", a.q.heads, ", ",
                   a.q.width, " and ", a.v.width, "]");
}

}  // namespace longstride::ops::cuda
