// What a block of attention backward walks: its key tile, and the query tiles that see it.
#pragma once

#include "ops/attention/attention_backward_plan.h"
#include "ops/attention/attention_cuda.h"

namespace longstride::ops::cuda {

inline constexpr int kHeadsAtOnce = 128;  // of a launch; they travel as arguments of the kernel

template <class A>
struct BackwardArguments {
  Heads<const A> q, k, v, dout;
  Heads<A> dq, dk, dv;
  const float2* rows = nullptr;  // [B, H, N] of {L log2 e, D}
  std::int32_t* done = nullptr;  // [shared tiles]: blocks that have added their dQ
  float* queries = nullptr;      // [shared tiles][tile.queries][padded qk_width], order of threads
  float* keys = nullptr;         // splits: [blocks][tile.keys][padded qk_width + v_width]
  const DevicePart* parts = nullptr;
  float scale = 1;
  std::int32_t length = 0;
  std::int32_t stores = 0;        // overwrites; else adds
  std::int32_t whole_pieces = 0;  // widths, strides and addresses allow moves of 16 bytes
  BackwardGeometry geometry;
  BackwardTile tile;
  std::int32_t heads = 0;
  PartOfHead head[kHeadsAtOnce];
};

struct KeyTile {
  const DevicePart* part;
  std::int32_t entry, head, batch, split;
  std::int32_t lane;       // of the keys; of a listed part: the key block
  std::int32_t number;     // in the lane; of a listed part: in the block
  std::int32_t first;      // key index; of a listed part: in the block
  std::int32_t count = 0;  // may be < 1
};

// Block numbers: heads change fastest (their rows are neighbours in memory), key tiles slowest and
// upwards, because sums of dQ wait for lower key tiles.
template <class A>
__device__ __forceinline__ KeyTile key_tile(const BackwardArguments<A>& a, std::uint32_t block) {
  KeyTile tile;
  const auto take = [&](std::int32_t n) {
    const std::uint32_t rest = block / static_cast<std::uint32_t>(n);
    const auto digit = static_cast<std::int32_t>(block - rest * static_cast<std::uint32_t>(n));
    block = rest;
    return digit;
  };
  const BackwardGeometry& g = a.geometry;
  tile.entry = take(a.heads);
  tile.head = a.head[tile.entry].head;
  tile.part = a.parts + a.head[tile.entry].part;
  tile.split = take(g.splits);
  tile.lane = take(g.lanes);
  tile.batch = take(static_cast<std::int32_t>(a.q.batch));
  tile.number = static_cast<std::int32_t>(block);
  if (g.tiles_a_block > 0) {
    tile.lane = tile.number / g.tiles_a_block;
    tile.number -= tile.lane * g.tiles_a_block;
    tile.first = tile.number * g.pitch;
    const std::int32_t size = tile.part->fold.by;
    tile.count =
        smaller(smaller(g.pitch, size - tile.first), a.length - tile.lane * size - tile.first);
    return tile;
  }
  tile.first = tile.number * g.pitch;
  tile.count =
      smaller(g.pitch, keys_before(*tile.part, tile.lane, smaller(a.length, tile.part->first_end)) -
                           tile.first);
  return tile;
}

template <class A>
__device__ __forceinline__ std::int32_t position_of_key(const BackwardArguments<A>& a,
                                                        const KeyTile& tile, std::int32_t n) {
  if (a.geometry.tiles_a_block > 0) return tile.lane * tile.part->fold.by + tile.first + n;
  return key(*tile.part, tile.lane, tile.first + n);
}

// The smallest j in [0, count] from which on holds(j) is true, by all threads of a warp together.
template <class Holds>
__device__ __forceinline__ std::int32_t first_that(std::int32_t count, const Holds& holds) {
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

// The query tiles that see a key tile, last ones first: then blocks that sum the same dQ, which
// begin one after another, follow each other one tile apart.
template <class A>
class QueryTiles {
 public:
  std::int32_t lane = 0;        // of the queries
  std::int32_t key_first = 0;   // key index of the key tile's first key in that lane
  std::int32_t key_number = 0;  // of the key tile in that lane
  std::int32_t step = 0, count = 0;
  std::int32_t shared = 0;  // number of the tile among those that share sums

  __device__ __forceinline__ QueryTiles(const BackwardArguments<A>& a, const KeyTile& tile) {
    if (tile.count < 1) return;
    if (a.geometry.tiles_a_block > 0) {
      segment_end_ = tile.part->seen_offsets[tile.lane];
      segment_ = tile.part->seen_offsets[tile.lane + 1];
    } else {
      lane = tile.lane;
      key_first = tile.first;
      key_number = tile.number;
      begin_lane(a, tile);
    }
  }

  __device__ __forceinline__ bool next(const BackwardArguments<A>& a, const KeyTile& tile) {
    while (tile_ == tile_end_) {
      if (segment_ == segment_end_) return false;
      --segment_;
      const std::int32_t slot = tile.part->seen_slot[segment_];
      lane = tile.part->seen_lane[segment_];
      key_first = slot * tile.part->fold.by + tile.first;
      key_number = slot * a.geometry.tiles_a_block + tile.number;
      begin_lane(a, tile);
    }
    --tile_;
    step = first_step_ + tile_ * a.tile.queries;
    count = smaller(a.tile.queries, step_end_ - step);
    shared =
        ((tile.entry * static_cast<std::int32_t>(a.q.batch) + tile.batch) * a.geometry.query_lanes +
         lane) *
            a.geometry.query_tiles +
        tile_;
    return true;
  }

  // Number, in the current lane, of the key tile that has key t.
  __device__ __forceinline__ std::int32_t key_tile_of(const BackwardArguments<A>& a,
                                                      const KeyTile& tile, std::int32_t t) const {
    if (a.geometry.tiles_a_block == 0) return t / a.geometry.pitch;
    const std::int32_t block = tile.part->fold.quotient(t);
    return block * a.geometry.tiles_a_block + (t - block * tile.part->fold.by) / a.geometry.pitch;
  }

 private:
  __device__ __forceinline__ void begin_lane(const BackwardArguments<A>& a, const KeyTile& tile) {
    const BackwardGeometry& g = a.geometry;
    const std::int32_t queries = a.tile.queries;
    first_step_ = 0;
    step_end_ = steps(*tile.part, lane, a.length);
    if (g.exclusive != 0) {
      if (g.shift >= 0) {
        first_step_ = smaller(step_end_, key_first + g.shift);
        step_end_ = smaller(step_end_, first_step_ + g.pitch);
      }
      tile_end_ = 0;
      tile_ = (step_end_ - first_step_ + queries - 1) / queries;
    } else {
      const std::int32_t tiles = (step_end_ + queries - 1) / queries;
      const auto seen = [&](std::int32_t s) {
        return reach(*tile.part, lane, query(*tile.part, lane, s));
      };
      tile_end_ = first_that(tiles, [&](std::int32_t j) {
        return seen(smaller(step_end_, (j + 1) * queries) - 1).end > key_first;
      });
      tile_ = larger(tile_end_, first_that(tiles, [&](std::int32_t j) {
                       return seen(j * queries).begin >= key_first + tile.count;
                     }));
    }
    const std::int32_t all = tile_ - tile_end_;
    const auto cut = [&](std::int32_t n) {
      return static_cast<std::int32_t>(static_cast<std::int64_t>(all) * n / g.splits);
    };
    tile_ = tile_end_ + cut(tile.split + 1);
    tile_end_ += cut(tile.split);
  }

  std::int32_t segment_ = 0, segment_end_ = 0;
  std::int32_t tile_ = 0, tile_end_ = 0;
  std::int32_t first_step_ = 0, step_end_ = 0;
};

// By one thread: what all threads of the block wrote before the last barrier is seen by the block
// one thread of which waited for the value, after its next barrier.
__device__ __forceinline__ void publish(std::int32_t* counter, std::int32_t value) {
  __threadfence();
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
template <int kQueries, class A>
__device__ __forceinline__ void describe_row(const BackwardArguments<A>& a, const KeyTile& tile,
                                             const QueryTiles<A>& tiles, std::int32_t r,
                                             QueryRows<kQueries>& rows) {
  KeyRange seen;
  std::int32_t begin = 0, end = 0;
  const bool inside = r < tiles.count;
  if (inside) {
    seen = reach(*tile.part, tiles.lane, query(*tile.part, tiles.lane, tiles.step + r));
    begin = smaller(tile.count, larger(0, seen.begin - tiles.key_first));
    end = smaller(tile.count, larger(begin, seen.end - tiles.key_first));
  }
  if (r < kQueries) rows.seen[r] = {begin, end};
  const bool shared = a.geometry.exclusive == 0;
  if (r == 0) rows.before = shared ? tiles.key_number - tiles.key_tile_of(a, tile, seen.begin) : 0;
  if (r == tiles.count - 1)
    rows.behind =
        shared ? tiles.key_tile_of(a, tile, larger(seen.end, 1) - 1) - tiles.key_number : 0;
  constexpr std::int32_t kFar = 1 << 30;
  const bool empty = begin >= end;
  int4 all = {empty ? kFar : begin, end, empty || tile.part->masked != 0 ? kFar : begin,
              empty ? 0 : end};
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
