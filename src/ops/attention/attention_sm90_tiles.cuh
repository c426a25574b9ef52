// What the Hopper kernels of attention share: which tiles of keys a tile of queries meets, where
// the copy engine finds them, and the order of work.
#pragma once

#include <cstdint>

#include "ops/attention/device_plan.h"

namespace longstride::ops::cuda::sm90 {

// Keys come in boxes of a tensor map [number, column, block, head, batch], position = block stride
// + column. Shape 0 is one block of the whole length; the others are of the summaries, one a stride
// and width, so that a box holds the compact summaries of several blocks: no copies, no gaps.
inline constexpr int kMaxShapes = 4;
struct KeyShape {
  std::int32_t stride = kPositionLimit, width = kPositionLimit;
};

// Keys of one box: whole summaries where they are smaller than a tile.
constexpr std::int32_t keys_in_box(std::int32_t width, std::int32_t tile) {
  return width >= tile ? tile : tile / width * width;
}
// Whether `groups` warpgroups of multiplying threads and one of loading threads get along with the
// registers that a block has from its launch: more are waited for for ever.
constexpr bool registers_fit(int groups, int multiplying, int loading) {
  const int at_launch = 65536 / (128 * (groups + 1)) / 8 * 8;
  return groups * multiplying + loading <= (groups + 1) * at_launch;
}

// Whether boxes of a tile never cross the end of a summary that they are a piece of.
constexpr bool boxes_fit(std::int32_t width, std::int32_t tile) {
  return width <= tile || width % tile == 0;
}

// The tiles of kTile keys (fewer are in use where summaries do not fill one) that the queries
// first .. last of a pass see, part by part. begin, begin + keys: key indices of the part.
template <int kTile>
struct KeyTiles {
  TileWalk walk;
  std::int32_t begin = 0, keys = 0;

  constexpr KeyTiles(const DevicePart* parts, const HeadPass& pass, std::int32_t first,
                     std::int32_t last)
      : walk(parts + pass.first_part, pass.parts, pass.pass, first, last) {}

  // new_part: whether the tile is the first of a part.
  constexpr bool next(bool& new_part) {
    begin += keys;
    new_part = false;
    while (begin >= walk.keys.end) {
      if (!walk.next()) return false;
      new_part = true;
      keys = keys_in_box(width(), kTile);
      begin = is_summary() ? walk.keys.begin / keys * keys : walk.keys.begin;
    }
    return true;
  }
  constexpr bool is_summary() const { return walk.part->type == PartType::summary; }
  constexpr std::int32_t width() const {
    return is_summary() ? walk.part->summary_width.by : kPositionLimit;
  }
  constexpr std::int32_t block() const {
    return is_summary() ? walk.part->summary_width.quotient(begin) : 0;
  }
  constexpr std::int32_t column() const {
    return is_summary() ? walk.part->summary_first + begin - block() * width() : begin;
  }
};

constexpr int shape_of(const DevicePart& part, const KeyShape (&shapes)[kMaxShapes]) {
  if (part.type != PartType::summary) return 0;
  int shape = 1;
  while (shape < kMaxShapes - 1 &&
         (shapes[shape].stride != part.fold.by || shapes[shape].width != part.summary_width.by))
    ++shape;
  return shape;
}

// Heads (of all sequences) are taken in groups whose keys and values stay in the L2 cache; within a
// group the longest tiles (the last queries, or the first keys) come first. Thread blocks take
// turns forth and back, so that each has about the same work.
struct Order {
  std::int32_t tiles = 0, heads = 0, group = 1;  // heads: batch * heads of the pass

  struct Work {
    std::int32_t tile, head;
  };
  constexpr std::int32_t size() const { return tiles * heads; }  // fits: see fits()
  static constexpr bool fits(std::int64_t all_tiles, std::int64_t all_heads) {
    return all_tiles * all_heads < kPositionLimit;
  }
  constexpr std::int32_t index(std::int32_t round, std::int32_t block, std::int32_t blocks) const {
    return round * blocks + (round % 2 == 0 ? block : blocks - 1 - block);
  }
  constexpr Work at(std::int32_t index) const {
    const std::int32_t whole = group * tiles, first = index / whole * group;
    const std::int32_t inside = index % whole, here = smaller(group, heads - first);
    return {inside / here, first + inside % here};
  }
};

}  // namespace longstride::ops::cuda::sm90
