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
  std::uint32_t block = blockIdx.x;
  const auto take = [&](std::int64_t n) {
    const std::uint32_t rest = block / static_cast<std::uint32_t>(n);
    const auto digit = static_cast<std::int32_t>(block - rest * static_cast<std::uint32_t>(n));
    block = rest;
    return digit;
  };
  tile.pass = a.passes[take(a.heads)];
  tile.lane = take(a.lanes);
  tile.batch = take(a.q.batch);
  tile.first = (a.tiles - 1 - static_cast<std::int32_t>(block)) * rows;
  tile.stride = a.stride;
  const std::int32_t steps = (a.length - tile.lane + a.stride - 1) / a.stride;
  tile.count = smaller(rows, steps - tile.first);
  return tile;
}

// Key indices [first, end) of a range, at most one tile of them.
struct KeySlot {
  const DevicePart* part = nullptr;  // null: behind the last
  std::int32_t lane = 0;
  std::int32_t first = 0, end = 0;  // `end` is that of the range
  std::int32_t range = -1;          // number of the range
  KeyMap map;
};

// The tiles of keys of a query tile, in order. Lives in shared memory: one thread walks, and all
// read the slots that it leaves in a ring.
template <int kKeys, int kSlots>
struct KeyWalk {
  TileWalk walk;
  KeySlot ahead;
  KeySlot ring[kSlots];

  __device__ void begin(const QueryTile& tile, const DevicePart* parts) {
    walk = TileWalk(parts + tile.pass.first_part, tile.pass.parts, tile.pass.pass, tile.position(0),
                    tile.position(tile.count - 1));
    ahead = KeySlot();
  }

  // Writes slot n; the slots before it are written.
  __device__ void write(int n) {
    ahead.first += kKeys;
    if (ahead.first >= ahead.end) {
      if (ahead.range >= 0 && ahead.part == nullptr) {
        // behind the last already
      } else if (walk.next()) {
        ahead.part = walk.part;
        ahead.lane = walk.lane;
        ahead.first = walk.keys.begin;
        ahead.end = walk.keys.end;
        ++ahead.range;
        ahead.map = key_map(*walk.part, walk.lane);
      } else {
        ahead.part = nullptr;
        ahead.range = larger(ahead.range, 0);
      }
    }
    ring[n % kSlots] = ahead;
  }
};

// One bit a pair, for parts that decide pair by pair, of rows [row, row + kRows) of the tile, by
// one warp: words[row][key / 32].
template <int kRows, int kKeys>
__device__ __forceinline__ void make_mask(std::uint32_t* words, const KeySlot& slot,
                                          const QueryTile& tile, int row) {
  const int lane = static_cast<int>(threadIdx.x & 31);
#pragma unroll 1
  for (int r = 0; r < kRows; ++r) {
    KeyRange seen;
    const std::int32_t i = row + r < tile.count ? tile.position(row + r) : 0;
    if (row + r < tile.count) seen = reach_in_lane(*slot.part, slot.lane, i);
    for (int w = 0; w < kKeys / 32; ++w) {
      const std::int32_t t = slot.first + w * 32 + lane;
      const bool kept =
          t >= seen.begin && t < seen.end && keeps(*slot.part, i, slot.map.position(t));
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
  device::check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes),
                "attention forward");
  kernel<<<static_cast<unsigned>(blocks), threads, bytes, stream>>>(a);
  device::launched(stream, "attention forward [", a.q.batch, ", ", a.length, ", ", a.q.heads, ", ",
                   a.q.width, " and ", a.v.width, "]");
}

}  // namespace longstride::ops::cuda
