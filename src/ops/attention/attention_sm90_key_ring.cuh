// How tiles of keys and values reach the warpgroups that hold queries: one thread walks the plan
// and loads, kStages tiles ahead, across the border from one work to the next; the warpgroups are
// told beside each tile what it is, so that they neither walk nor schedule.
#pragma once

#include "ops/attention/attention_sm90_common.cuh"

namespace longstride::ops::cuda::sm90 {

// Keys and values of all heads, and where they are found.
struct KeySource {
  CUtensorMap k[kMaxShapes], v[kMaxShapes];
  KeyShape shapes[kMaxShapes];
  const DevicePart* parts;  // on the device, as is
  const HeadPass* passes;   // [pass_count]
  std::int32_t pass_count, length;
};

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)

// A tile of queries of one head.
struct Work {
  std::int32_t first, head, batch;  // first query; head < 0: there is no more work
  std::int32_t merges;
};

struct TileInfo {
  const DevicePart* part;   // null: the queries see no key at all
  std::int32_t begin;       // key index of the first key
  std::int16_t keys, last;  // keys in the tile; whether it is the last of the work
};

template <int kQueries>
struct WorkBarriers {
  std::uint64_t full[kQueries], free[kQueries];
  Work work[kQueries];
  __device__ void init(int warps) {
    for (int n = 0; n < kQueries; ++n) {
      barrier_init(address_of(&full[n]), 1);
      barrier_init(address_of(&free[n]), warps);
    }
  }
};

template <int kStages>
struct KeyBarriers {
  std::uint64_t k_full[kStages], k_free[kStages], v_full[kStages], v_free[kStages];
  TileInfo info[kStages];
  __device__ void init(int warps) {
    for (int n = 0; n < kStages; ++n) {
      barrier_init(address_of(&k_full[n]), 1);
      barrier_init(address_of(&v_full[n]), 1);
      barrier_init(address_of(&k_free[n]), warps);
      barrier_init(address_of(&v_free[n]), warps);
    }
  }
};

// The loading thread.
template <int kKeys, int kQk, int kV, int kStages>
struct KeyLoader {
  static constexpr int kKBytes = kKeys * kQk * 2, kVBytes = kKeys * kV * 2;
  const KeySource& source;
  KeyBarriers<kStages>& barriers;
  Address k, v;
  Ring<kStages> ring;

  struct Tile {
    TileInfo info;
    std::int32_t column, block;
    int shape, bytes;
  };

  // All tiles that the queries first .. last of a work see.
  __device__ void load(const Work& work, const HeadPass& pass, std::int32_t last) {
    KeyTiles<kKeys> tiles(source.parts, pass, work.first, last);
    Tile tile{};
    bool new_part = false, more = tiles.next(new_part);
    if (!more) {
      tile.info.last = 1;
      return push(work, tile);
    }
    while (more) {
      if (new_part) {
        tile.info.part = tiles.walk.part;
        tile.shape = shape_of(*tiles.walk.part, source.shapes);
        tile.info.keys = static_cast<std::int16_t>(tiles.keys);
        tile.bytes = tiles.keys * kRowBytes;
      }
      tile.info.begin = tiles.begin;
      tile.column = tiles.column();
      tile.block = tiles.block();
      more = tiles.next(new_part);
      tile.info.last = !more;
      push(work, tile);
    }
  }
  __device__ void push(const Work& work, const Tile& tile) {
    const Address k_full = address_of(&barriers.k_full[ring.stage]);
    const Address v_full = address_of(&barriers.v_full[ring.stage]);
    wait_for(address_of(&barriers.k_free[ring.stage]), ring.parity ^ 1);
    barriers.info[ring.stage] = tile.info;
    arrive_expecting(k_full, tile.bytes * (kQk / 64));
    if (tile.bytes > 0)
      for (int c = 0; c < kQk / 64; ++c)
        load_box(k + ring.stage * kKBytes + c * kKeys * kRowBytes, source.k[tile.shape], k_full,
                 64 * c, tile.column, tile.block, work.head, work.batch);
    wait_for(address_of(&barriers.v_free[ring.stage]), ring.parity ^ 1);
    arrive_expecting(v_full, tile.bytes * (kV / 64));
    if (tile.bytes > 0)
      for (int c = 0; c < kV / 64; ++c)
        load_box(v + ring.stage * kVBytes + c * kKeys * kRowBytes, source.v[tile.shape], v_full,
                 64 * c, tile.column, tile.block, work.head, work.batch);
    ring.advance();
  }
};

// The turns of this thread block, by the loading thread: start(work) loads the queries of each into
// slot ring.stage, then the keys follow; at the end a work without a head.
template <int kRows, class Loader, int kQueries, class Start>
__device__ void load_all(const Order& order, Loader& loader, WorkBarriers<kQueries>& works,
                         int query_bytes, const Start& start) {
  const KeySource& source = loader.source;
  const auto block = static_cast<std::int32_t>(blockIdx.x);
  const auto blocks = static_cast<std::int32_t>(gridDim.x);
  Ring<kQueries> ring;
  for (std::int64_t round = 0;; ++round) {
    const std::int64_t index = order.index(round, block, blocks);
    const bool any = round * blocks < order.size();
    if (any && index >= order.size()) continue;
    const Address full = address_of(&works.full[ring.stage]);
    wait_for(address_of(&works.free[ring.stage]), ring.parity ^ 1);
    if (!any) {
      works.work[ring.stage] = {0, -1, 0, 0};
      return arrive(full);
    }
    const Order::Work turn = order.at(index);
    const HeadPass& pass = source.passes[turn.head % source.pass_count];
    const Work work = {(order.tiles - 1 - turn.tile) * kRows, pass.head,
                       turn.head / source.pass_count, pass.merges};
    works.work[ring.stage] = work;
    arrive_expecting(full, query_bytes);
    start(work, ring.stage, full);
    ring.advance();
    loader.load(work, pass, smaller(work.first + kRows, source.length) - 1);
  }
}

// What a warpgroup of 64 queries knows of the part whose tiles pass by: what its first and last
// query see, and what each thread's two rows see.
template <int kKeys>
struct Sight {
  std::int32_t begin, end;          // of all its queries together
  std::int32_t all_begin, all_end;  // seen by each of its queries
  std::int32_t row_begin[2], row_end[2];

  __device__ void look(const DevicePart* part, std::int32_t first, std::int32_t row,
                       std::int32_t length) {
    begin = end = 0;
    if (part == nullptr || first >= length) return;
    const std::int32_t last = length - 1;
    const KeyRange of_first = reach(*part, 0, first);
    const KeyRange of_last = reach(*part, 0, smaller(first + 63, last));
    begin = of_first.begin, end = of_last.end;
    all_begin = of_last.begin, all_end = of_first.end;
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const KeyRange mine = reach(*part, 0, smaller(row + 8 * h, last));
      row_begin[h] = mine.begin, row_end[h] = mine.end;
    }
  }
  __device__ bool sees(const TileInfo& tile) const {
    return tile.begin < end && tile.begin + tile.keys > begin;
  }
  __device__ bool sees_all(const TileInfo& tile) const {
    return tile.begin >= all_begin && tile.begin + kKeys <= all_end && tile.keys == kKeys;
  }
  // -inf for what a row does not see. Thread registers as of wgmma: u = thread % 4.
  __device__ void mask(float (&s)[kKeys / 2], const TileInfo& tile, int u) const {
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const std::int32_t from = row_begin[h] - tile.begin - 2 * u;
      const std::int32_t to = smaller(row_end[h] - tile.begin, tile.keys) - 2 * u;
#pragma unroll
      for (int j = 0; j < kKeys / 8; ++j)
#pragma unroll
        for (int e = 0; e < 2; ++e)
          if (8 * j + e < from || 8 * j + e >= to) s[4 * j + 2 * h + e] = -INFINITY;
    }
  }
};

#endif

}  // namespace longstride::ops::cuda::sm90
