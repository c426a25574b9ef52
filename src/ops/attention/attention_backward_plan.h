// How attention backward on a GPU cuts a plan into launches, from shapes alone.
//
// A launch takes one part of each of its heads. A block of threads owns a tile of keys, walks the
// tiles of queries that see it and makes all five products on chip. dK and dV are its own. dQ of a
// query tile that several key tiles reach is summed in float, in the order of the key tiles: block
// number r of those waits until r - 1 are done, which all have lower block numbers and so run or
// have run. The last one writes. Where one block owns all keys of its queries (columns and rows
// that fit a tile) there is nothing to wait for: `exclusive`.
//
// The parts of a union follow each other and add to what is there; where no part of a head writes
// every element, the head's gradients are cleared before.
#pragma once

#include <cstdint>
#include <vector>

#include "ops/attention/device_plan.h"

namespace longstride::ops::cuda {

struct BackwardTile {
  std::int32_t keys = 0, queries = 0;
};

// Tiles of the two kernels for a pair of widths.
struct BackwardTiles {
  BackwardTile whole;  // where one tile of keys is all that its queries see (`exclusive`)
  BackwardTile other;
};

// One part of one head.
struct PartOfHead {
  std::int32_t head = 0, part = 0;  // part: in PlanTables::parts
};

struct BackwardGeometry {
  std::int32_t lanes = 1;          // that own key tiles; of a listed part 1
  std::int32_t key_tiles = 0;      // of a lane
  std::int32_t pitch = 0;          // keys from one tile to the next; listed: of a block
  std::int32_t tiles_a_block = 0;  // listed: key tiles of a key block; else 0
  std::int32_t query_lanes = 1;
  std::int32_t query_tiles = 0;  // of a query lane
  std::int32_t exclusive = 0;
  // exclusive: keys [t, t + pitch) are seen by as many steps from t + shift on; -1: by all
  std::int32_t shift = -1;
  std::int32_t splits = 1;  // blocks that share a key tile, each with a share of its query tiles
  bool operator==(const BackwardGeometry&) const = default;
};

struct BackwardLaunch {
  BackwardGeometry geometry;
  bool whole = false;   // which of the two tiles
  bool stores = false;  // every element of dq, dk, dv of its heads, else it adds
  std::vector<PartOfHead> heads;

  std::int64_t blocks(std::int64_t batch) const {
    return batch * static_cast<std::int64_t>(heads.size()) * geometry.lanes * geometry.key_tiles *
           geometry.splits;
  }
  // Query tiles whose dQ may be summed by several blocks.
  std::int64_t shared_tiles(std::int64_t batch) const {
    return geometry.exclusive != 0 ? 0
                                   : batch * static_cast<std::int64_t>(heads.size()) *
                                         geometry.query_lanes * geometry.query_tiles;
  }
};

struct BackwardLaunches {
  std::vector<std::int32_t> cleared;  // heads that begin with zeros
  std::vector<BackwardLaunch> list;   // to be run in this order
};

BackwardGeometry backward_geometry(const DevicePart& part, std::int64_t length, BackwardTile tile);

// at_once: most heads of a launch. without_line: other kernels have written the gradients of the
// heads of the line (PassGroup::stride 0) from its parts; what is left of these heads is added.
BackwardLaunches backward_launches(const PlanTables& tables, std::int64_t batch,
                                   std::int64_t length, const BackwardTiles& tiles,
                                   std::size_t at_once, bool without_line = false);

// Where the parts of the scratch begin, in floats; all multiples of 4.
struct BackwardScratch {
  std::int64_t rows = 0;  // [B, H, N] of {L log2 e, D}
  std::int64_t done = 0;  // counters of the shared query tiles, one after another of all launches
  std::int64_t counters = 0;
  std::int64_t queries = 0;  // sums of dQ, [shared tiles of a launch][tile.queries][qk_width]
  std::int64_t keys = 0;     // of launches with splits: [blocks][tile.keys][qk_width + v_width]
  std::int64_t size = 0;
};
BackwardScratch backward_scratch(const BackwardLaunches& launches, std::int64_t batch,
                                 std::int64_t length, std::int64_t heads,
                                 const BackwardTiles& tiles, std::int64_t qk_width,
                                 std::int64_t v_width);

}  // namespace longstride::ops::cuda
