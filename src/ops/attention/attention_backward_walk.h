// What a block of attention backward walks: its key tile, and the query tiles that see it. The same
// on host and device, so that tests on the host follow it.
#pragma once

#include "ops/attention/attention_backward_plan.h"

namespace longstride::ops::cuda {

inline constexpr int kHeadsAtOnce = 128;  // of a launch; they travel as arguments of the kernel

struct BackwardWalk {
  const DevicePart* parts = nullptr;
  std::int32_t length = 0, batch = 0;
  BackwardGeometry geometry;
  BackwardTile tile;
  std::int32_t heads = 0;
  PartOfHead head[kHeadsAtOnce];
};

struct KeyTile {
  const DevicePart* part = nullptr;
  std::int32_t entry = 0, head = 0, batch = 0, split = 0;
  std::int32_t lane = 0;    // of the keys; of a listed part: the key block
  std::int32_t number = 0;  // in the lane; of a listed part: in the block
  std::int32_t first = 0;   // key index; of a listed part: in the block
  std::int32_t count = 0;   // may be < 1
};

// Block numbers: heads change fastest (their rows are neighbours in memory), key tiles slowest and
// upwards, because sums of dQ wait for lower key tiles.
constexpr KeyTile key_tile(const BackwardWalk& a, std::uint32_t block) {
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
  tile.batch = take(a.batch);
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

constexpr std::int32_t position_of_key(const BackwardWalk& a, const KeyTile& tile, std::int32_t n) {
  if (a.geometry.tiles_a_block > 0) return tile.lane * tile.part->fold.by + tile.first + n;
  return key(*tile.part, tile.lane, tile.first + n);
}

// The query tiles that see a key tile. first_that(count, holds): the smallest j in [0, count] from
// which on holds(j) is true. Last ones first: then blocks that sum the same dQ, which begin one
// after another, follow each other one tile apart.
class QueryTiles {
 public:
  std::int32_t lane = 0;        // of the queries
  std::int32_t key_first = 0;   // key index of the key tile's first key in that lane
  std::int32_t key_number = 0;  // of the key tile in that lane
  std::int32_t step = 0, count = 0;
  std::int32_t shared = 0;  // number of the tile among those that share sums

  constexpr QueryTiles(const BackwardWalk& a, const KeyTile& tile) {
    if (tile.count < 1) return;
    const bool listed = a.geometry.tiles_a_block > 0;
    segment_end_ = listed ? tile.part->seen_offsets[tile.lane] : 0;
    segment_ = listed ? tile.part->seen_offsets[tile.lane + 1] : 1;
  }

  template <class Search>
  constexpr bool next(const BackwardWalk& a, const KeyTile& tile, const Search& first_that) {
    while (tile_ == tile_end_) {
      if (segment_ == segment_end_) return false;
      --segment_;
      const bool listed = a.geometry.tiles_a_block > 0;
      const std::int32_t slot = listed ? tile.part->seen_slot[segment_] : 0;
      lane = listed ? tile.part->seen_lane[segment_] : tile.lane;
      key_first = slot * tile.part->fold.by + tile.first;
      key_number = slot * a.geometry.tiles_a_block + tile.number;
      begin_lane(a, tile, first_that);
    }
    --tile_;
    step = first_step_ + tile_ * a.tile.queries;
    count = smaller(a.tile.queries, step_end_ - step);
    shared = ((tile.entry * a.batch + tile.batch) * a.geometry.query_lanes + lane) *
                 a.geometry.query_tiles +
             tile_;
    return true;
  }

  // The key indices of the lane that row r of the query tile sees; cut to the key tile and counted
  // from its first.
  constexpr KeyRange seen_by(const KeyTile& tile, std::int32_t r) const {
    return seen(tile, step + r);
  }
  constexpr KeyRange inside(const KeyTile& tile, KeyRange seen) const {
    const std::int32_t begin = smaller(tile.count, larger(0, seen.begin - key_first));
    return {begin, smaller(tile.count, larger(begin, seen.end - key_first))};
  }

  // Key tiles that add to the same dQ before and behind this one; what the query tile's first and
  // last row see.
  constexpr std::int32_t before(const BackwardWalk& a, const KeyTile& tile, KeyRange first) const {
    return a.geometry.exclusive != 0 ? 0 : key_number - key_tile_of(a, tile, first.begin);
  }
  constexpr std::int32_t behind(const BackwardWalk& a, const KeyTile& tile, KeyRange last) const {
    if (a.geometry.exclusive != 0) return 0;
    return key_tile_of(a, tile, larger(last.end, 1) - 1) - key_number;
  }

 private:
  // Number, in the current lane, of the key tile that has key t.
  constexpr std::int32_t key_tile_of(const BackwardWalk& a, const KeyTile& tile,
                                     std::int32_t t) const {
    if (a.geometry.tiles_a_block == 0) return t / a.geometry.pitch;
    const std::int32_t block = tile.part->fold.quotient(t);
    return block * a.geometry.tiles_a_block + (t - block * tile.part->fold.by) / a.geometry.pitch;
  }

  constexpr KeyRange seen(const KeyTile& tile, std::int32_t s) const {
    return reach(*tile.part, lane, query(*tile.part, lane, s));
  }

  template <class Search>
  constexpr void begin_lane(const BackwardWalk& a, const KeyTile& tile, const Search& first_that) {
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
      tile_end_ = first_that(tiles, [&](std::int32_t j) {
        return seen(tile, smaller(step_end_, (j + 1) * queries) - 1).end > key_first;
      });
      tile_ = larger(tile_end_, first_that(tiles, [&](std::int32_t j) {
                       return seen(tile, j * queries).begin >= key_first + tile.count;
                     }));
    }
    const std::int32_t all = tile_ - tile_end_;
    const auto cut = [&](std::int32_t n) {
      return static_cast<std::int32_t>(static_cast<std::int64_t>(all) * n / g.splits);
    };
    tile_ = tile_end_ + cut(tile.split + 1);
    tile_end_ += cut(tile.split);
  }

  std::int32_t segment_ = 0, segment_end_ = 0;  // lanes of queries: of a listed part several
  std::int32_t tile_ = 0, tile_end_ = 0;
  std::int32_t first_step_ = 0, step_end_ = 0;
};

}  // namespace longstride::ops::cuda
