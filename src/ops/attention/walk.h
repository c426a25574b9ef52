// How the attention kernels walk a plan: queries in tiles of one lane, key indices in chunks
// aligned to kKeyChunk. Training walks tiles, decoding walks one row; both meet the kept keys of a
// row in the same order and cut into the same chunks, which is why their bits agree.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <vector>

#include "ops/attention/attention.h"

namespace longstride::ops {

// Queries of a tile: one AVX-512 vector, two of AVX2. A longer tile would waste more pairs on the
// diagonals of short lanes (column(128) at 4,096 has lanes of 32), a shorter one more key reads.
inline constexpr int kTile = 16;

// Entries that arrays of keys have behind their last one: kernels take keys in blocks.
inline constexpr int kSlack = 16;

// Steps [step_begin, step_end) of each lane in [lane_begin, lane_end): the work of one task.
struct Span {
  std::int64_t lane_begin = 0, lane_end = 0, step_begin = 0, step_end = 0;
};

// Cuts the queries at positions < length (which may be shorter than the plan) into spans of about
// `queries` queries, the last ones first: they tend to see most keys, so tasks end together.
// whole_lanes: a lane is never split.
std::vector<Span> spans(const PartPlan& part, std::int64_t length, std::int64_t queries,
                        bool whole_lanes);

// Steps of the lane whose position is < length.
std::int64_t steps_below(const PartPlan& part, std::int64_t lane, std::int64_t length);

// One task: a span of one part of one head. `number` is that of the part in its union.
struct PartTask {
  const PartPlan* part = nullptr;
  std::size_t number = 0;
  std::int64_t batch = 0, head = 0;
  Span span;
};

// All tasks by part number: levels must run one after the other, the tasks of one level touch
// different rows. for_gradients: they also touch different keys.
std::vector<std::vector<PartTask>> part_tasks(const AttentionPlan& plan, std::int64_t batch,
                                              std::int64_t length, bool for_gradients);

struct Tile {
  int rows = 0;  // the rest of the kTile rows sees no key
  std::array<Position, kTile> query{};
  std::array<Interval, kTile> reach{};
  Interval any;  // holds every reach that is not empty
  Interval all;  // key indices that every row reaches
};

Tile make_tile(const PartPlan& part, std::int64_t lane, std::int64_t step, int rows);

// The key indices [first + begin, first + end) of one chunk, first a multiple of kKeyChunk.
struct Chunk {
  std::int64_t first = 0;
  int begin = 0, end = 0;
  std::array<Position, kKeyChunk> position{};  // of [begin, end)
};

Chunk make_chunk(const PartPlan& part, std::int64_t lane, std::int64_t first, Interval keys);

// Keys [begin, end) of a chunk that all rows of the tile keep, or (masked) only some.
struct Run {
  int begin = 0, end = 0;
  bool masked = false;
};

// Which pairs of a tile and a chunk are kept. Keys outside all runs are kept by no row.
struct Mask {
  int begin = 0, end = 0;  // holds all runs
  int runs = 0;
  std::array<Run, kKeyChunk> run;
  alignas(64) std::uint32_t active[kKeyChunk][kTile];  // all bits or none; set in masked runs only
};

// False: no pair is kept, the tile skips the chunk.
bool make_mask(const PartPlan& part, const Tile& tile, const Chunk& chunk, Mask& mask);

// Calls absorb(count, positions) for each chunk that holds kept keys of position i, in order.
template <class Absorb>
void walk_row(const PartPlan& part, Position i, Absorb&& absorb) {
  const std::int64_t lane = part.lane_of(i);
  const Interval reach = part.reach(lane, part.step_of(i));
  std::array<Position, kKeyChunk> kept;
  for (std::int64_t t = reach.begin; t < reach.end;) {
    const std::int64_t end = std::min(reach.end, (t / kKeyChunk + 1) * kKeyChunk);
    int count = 0;
    for (; t < end; ++t) {
      const Position j = part.key(lane, t);
      if (!part.masked() || part.keeps(i, j)) kept[static_cast<std::size_t>(count++)] = j;
    }
    if (count > 0) absorb(count, kept.data());
  }
}

}  // namespace longstride::ops
