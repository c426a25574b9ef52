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

// What the loading warp finds out about a tile. Two bits for each warpgroup of 64 queries. some: a
// query sees a key, where both are set. all: all queries see the last keys of a full tile, all see
// the first keys.
struct TileInfo {
  const DevicePart* part;   // null: the queries see no key at all
  std::int32_t begin;       // key index of the first key
  std::uint8_t keys, last;  // keys in the tile; whether it is the last of the work
  std::uint8_t some, all;
  __device__ bool seen(int group) const { return (some >> (2 * group) & 3) == 3; }
  __device__ Cut cut(int group) const { return cut_of(all >> (2 * group)); }
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

// The loading warp; its first lane copies, all lanes know.
template <int kKeys, int kGroups, int kQk, int kV, int kStages>
struct KeyLoader {
  static constexpr int kKBytes = kKeys * kQk * 2, kVBytes = kKeys * kV * 2;
  const KeySource& source;
  KeyBarriers<kStages>& barriers;
  Address k, v;
  int lane;
  Ring<kStages> ring;

  struct Tile {
    TileInfo info;
    std::int32_t column, block;
    int shape, bytes;
  };

  // All tiles that the queries of a work see. Lanes 2 g and 2 g + 1 look from the first and the
  // last query of warpgroup g.
  __device__ void load(const Work& work, const HeadPass& pass) {
    const std::int32_t end = smaller(work.first + 64 * kGroups, source.length);
    const std::int32_t group_first = work.first + 64 * (lane / 2 % kGroups);
    const bool from_first = lane % 2 == 0, inside = group_first < end && lane < 2 * kGroups;
    const std::int32_t query = from_first ? group_first : smaller(group_first + 64, end) - 1;
    KeyRange mine{};
    KeyTiles<kKeys> tiles(source.parts, pass, work.first, end - 1);
    Tile tile{};
    bool new_part = false, more = tiles.next(new_part);
    if (!more) {
      tile.info.last = 1;
      return push(work, tile);
    }
    while (more) {
      if (new_part) {
        mine = inside ? reach(*tiles.walk.part, 0, query) : KeyRange{};
        tile.info.part = tiles.walk.part;
        tile.shape = shape_of(*tiles.walk.part, source.shapes);
        tile.info.keys = static_cast<std::uint8_t>(tiles.keys);
        tile.bytes = tiles.keys * kRowBytes;
      }
      const std::int32_t first = tiles.begin, behind = first + tiles.keys;
      const bool some = inside && (from_first ? behind > mine.begin : first < mine.end);
      // The first query's keys end first, the last one's begin last.
      const bool all =
          inside && (from_first ? tiles.keys == kKeys && behind <= mine.end : first >= mine.begin);
      tile.info.some = static_cast<std::uint8_t>(__ballot_sync(0xffffffffu, some));
      tile.info.all = static_cast<std::uint8_t>(__ballot_sync(0xffffffffu, all));
      tile.info.begin = first;
      tile.column = tiles.column();
      tile.block = tiles.block();
      more = tiles.next(new_part);
      tile.info.last = !more;
      push(work, tile);
    }
  }
  __device__ void push(const Work& work, const Tile& tile) {
    wait_for(address_of(&barriers.k_free[ring.stage]), ring.parity ^ 1);
    if (lane == 0) {
      const Address full = address_of(&barriers.k_full[ring.stage]);
      barriers.info[ring.stage] = tile.info;
      arrive_expecting(full, tile.bytes * (kQk / 64));
      for (int c = 0; c < kQk / 64 && tile.bytes > 0; ++c)
        load_box(k + ring.stage * kKBytes + c * kKeys * kRowBytes, source.k[tile.shape], full,
                 64 * c, tile.column, tile.block, work.head, work.batch);
    }
    wait_for(address_of(&barriers.v_free[ring.stage]), ring.parity ^ 1);
    if (lane == 0) {
      const Address full = address_of(&barriers.v_full[ring.stage]);
      arrive_expecting(full, tile.bytes * (kV / 64));
      for (int c = 0; c < kV / 64 && tile.bytes > 0; ++c)
        load_box(v + ring.stage * kVBytes + c * kKeys * kRowBytes, source.v[tile.shape], full,
                 64 * c, tile.column, tile.block, work.head, work.batch);
    }
    ring.advance();
  }
};

// The turns of this thread block, by the loading warp: start(work, slot, barrier) loads the queries
// of each, then the keys follow; at the end a work without a head.
template <int kRows, class Loader, int kQueries, class Start>
__device__ void load_all(const Order& order, Loader& loader, WorkBarriers<kQueries>& works,
                         int query_bytes, const Start& start) {
  const KeySource& source = loader.source;
  Ring<kQueries> ring;
  for (Turns turns(order);; ring.advance()) {
    const bool any = turns.next();
    const Address full = address_of(&works.full[ring.stage]);
    wait_for(address_of(&works.free[ring.stage]), ring.parity ^ 1);
    if (!any) {
      if (loader.lane == 0) {
        works.work[ring.stage] = {0, -1, 0, 0};
        arrive(full);
      }
      return;
    }
    const HeadPass& pass = source.passes[turns.work.head % source.pass_count];
    const Work work = {(order.tiles - 1 - turns.work.tile) * kRows, pass.head,
                       turns.work.head / source.pass_count, pass.merges};
    if (loader.lane == 0) {
      works.work[ring.stage] = work;
      arrive_expecting(full, query_bytes);
      start(work, ring.stage, full);
    }
    loader.load(work, pass);
  }
}

// The keys that a thread's two rows see, of the part whose tiles pass by; asked for where a tile is
// not seen as a whole.
template <int kKeys>
struct Sight {
  const DevicePart* part = nullptr;
  std::int32_t begin[2], end[2];

  __device__ void mask(float (&s)[kKeys / 2], const TileInfo& tile, Cut cut, std::int32_t row,
                       std::int32_t length, int u) {
    if (part != tile.part) {
      part = tile.part;
      const KeyRange mine = reach(*part, 0, smaller(row + 8 * (u & 1), length - 1));
      share_rows(mine.begin, begin);
      share_rows(mine.end, end);
    }
    std::int32_t from[2], to[2];
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      from[h] = begin[h] - tile.begin - 2 * u;
      to[h] = smaller(end[h] - tile.begin, static_cast<std::int32_t>(tile.keys)) - 2 * u;
    }
    cut_off(s, cut, from, to);
  }
};

#endif

}  // namespace longstride::ops::cuda::sm90
