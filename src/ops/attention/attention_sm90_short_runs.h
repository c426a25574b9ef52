// Short line patterns walked along the sequence: local(l) and row(l) of so few keys that a tile of
// queries sees at most kLive tiles of keys, its own and those just before. A thread block takes a
// run of consecutive tiles of a head; only at the ends of a run is anything read twice.
#pragma once

#include <cstdint>

#include "ops/attention/device_plan.h"

namespace longstride::ops::cuda::sm90 {

inline constexpr int kWalkTile = 64;  // queries or keys
inline constexpr int kLive = 3;       // tiles of keys that a tile of queries may see

// Query i sees the keys key_begin(i) .. i; key j is seen by the queries j .. query_end(j) - 1.
struct ShortPattern {
  std::int32_t window = 0;  // of local; 0: a row
  Divider row;
  constexpr std::int32_t key_begin(std::int32_t i) const {
    return window > 0 ? larger(0, i + 1 - window) : row.floor(i);
  }
  constexpr std::int32_t query_end(std::int32_t j) const {
    return window > 0 ? j + window : row.floor(j) + row.by;
  }
  // Of tiles: key_tile <= query_tile.
  constexpr bool sees(std::int32_t query_tile, std::int32_t key_tile) const {
    return query_end((key_tile + 1) * kWalkTile - 1) > query_tile * kWalkTile;
  }
  // Whether some pair of two tiles is cut off because the key is too far back.
  constexpr bool cuts(std::int32_t query_tile, std::int32_t key_tile) const {
    return query_end(key_tile * kWalkTile) < (query_tile + 1) * kWalkTile;
  }
};

constexpr ShortPattern short_pattern(const DevicePart& part) {
  ShortPattern pattern;
  if (part.type == PartType::local) pattern.window = part.window;
  pattern.row = part.fold;
  return pattern;
}

// Whether short_pattern() says all about the part and a tile of queries sees at most kLive tiles.
constexpr bool is_short(const DevicePart& part) {
  if (part.masked != 0 || part.first != 0 || part.first_end < kPositionLimit || part.newest != 0)
    return false;
  constexpr std::int32_t kReach = (kLive - 1) * kWalkTile + 1;
  if (part.type == PartType::local) return part.edges_end == 0 && part.window <= kReach;
  const std::int32_t row = part.fold.by;
  return part.type == PartType::row && part.edges_end == 1 && part.begin_edges == 1 &&
         part.edges[0].stride.by == row && part.edges[0].back == 0 &&
         (row <= kReach || (row % kWalkTile == 0 && row <= kLive * kWalkTile));
}

// A run of tiles: it completes the queries and the keys of the tiles first .. end - 1. For those it
// needs keys from tile first_key on, and queries up to tile last - 1.
struct ShortRun {
  std::int32_t first_key = 0, first = 0, end = 0, last = 0;
};
constexpr ShortRun short_run(const ShortPattern& pattern, std::int32_t number, std::int32_t tiles,
                             std::int32_t tiles_in_run) {
  ShortRun run;
  run.first = number * tiles_in_run;
  run.end = smaller(run.first + tiles_in_run, tiles);
  run.first_key = pattern.key_begin(run.first * kWalkTile) / kWalkTile;
  run.last = smaller(tiles, (pattern.query_end(run.end * kWalkTile - 1) - 1) / kWalkTile + 1);
  return run;
}

// Tiles in a run: all multiprocessors are to be busy to the end, and what is read twice at the ends
// of a run (and the time until its first tiles are there), about kLive tiles, is to be little.
constexpr std::int32_t tiles_in_run(std::int64_t sequences, std::int32_t tiles,
                                    std::int64_t multiprocessors) {
  std::int32_t best = tiles;
  std::int64_t least = 0;
  for (std::int32_t runs = 1; runs <= tiles; ++runs) {
    const std::int32_t length = (tiles + runs - 1) / runs;
    const std::int32_t used = (tiles + length - 1) / length;
    const std::int64_t rounds = (sequences * used + multiprocessors - 1) / multiprocessors;
    const std::int64_t time = rounds * (length + kLive);
    if (least == 0 || time < least) least = time, best = length;
    if (sequences * runs > 4 * multiprocessors) break;
  }
  return best;
}

}  // namespace longstride::ops::cuda::sm90
