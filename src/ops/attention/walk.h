// How the attention kernels walk a plan: queries in tiles of one lane, key indices in chunks
// aligned to kKeyChunk. Training walks tiles, decoding walks one row; both meet the kept keys of a
// row in the same order and cut into the same chunks, which is why their bits agree.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <limits>
#include <vector>

#include "ops/attention/attention.h"

namespace longstride::ops {

// Queries of a tile: one AVX-512 vector, two of AVX2. A longer tile would waste more pairs on the
// diagonals of short lanes (column(128) at 4,096 has lanes of 32), a shorter one more key reads.
inline constexpr int kTile = 16;

// Entries that arrays of keys have behind their last one: decoding takes keys in blocks.
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
  // Gradients: only keys at these positions; and whether the task is the first to reach them.
  Interval keys = {0, std::numeric_limits<std::int64_t>::max()};
  bool first_of_queries = true, first_of_keys = false;
};

// Levels must run one after the other, the tasks of one level touch different rows.
using Levels = std::vector<std::vector<PartTask>>;

// Tasks of a part that suit any number of threads: more would start more often without rows that
// were fetched ahead.
inline constexpr std::int64_t kTasks = 128;

// One level a part.
Levels forward_tasks(const AttentionPlan& plan, std::int64_t batch, std::int64_t length);

// The tasks of a level touch different queries and different keys, so they add to dQ, dK and dV in
// place. A lane that is too long for one task, or that shares keys with others, is cut into blocks
// of positions: task (i, j) takes the queries of block i and the keys of block j <= i. The diagonal
// comes first, then (i, j) at level (i + j) mod m, m the largest i - j: no two of them have a block
// in common. So a part has some kTasks tasks, whatever its lanes.
Levels gradient_tasks(const AttentionPlan& plan, std::int64_t batch, std::int64_t length);

// Whether each query sees the key at its own position, which no other lane sees. Where the first
// part of a head does, gradients of all keys are reached, else dK and dV have to be cleared first.
bool sees_itself(const PartPlan& part);

// Calls add(batch, head) for each head of the kind.
template <class Add>
void for_each_head(const AttentionPlan& plan, std::size_t kind, std::int64_t batch, Add&& add) {
  for (std::int64_t b = 0; b < batch; ++b)
    for (std::size_t h = 0; h < plan.kind_of_head.size(); ++h)
      if (plan.kind_of_head[h] == static_cast<std::int64_t>(kind))
        add(b, static_cast<std::int64_t>(h));
}

struct Tile {
  int rows = 0;  // the rest of the kTile rows sees no key
  std::array<Position, kTile> query{};
  std::array<Interval, kTile> reach{};
  Interval any;  // holds every reach that is not empty
  Interval all;  // key indices that every row reaches
};

inline constexpr Interval kAllKeys = {0, std::numeric_limits<std::int64_t>::max()};

// keys: the key indices that the tile is cut to.
Tile make_tile(const PartPlan& part, std::int64_t lane, std::int64_t step, int rows,
               Interval keys = kAllKeys);

// The key indices [first + begin, first + end) of one chunk, first a multiple of kKeyChunk.
struct Chunk {
  std::int64_t first = 0;
  int begin = 0, end = 0;
  std::array<Position, kKeyChunk> position{};  // of [begin, end)
};

Chunk make_chunk(const PartPlan& part, std::int64_t lane, std::int64_t first, Interval keys);

// Which pairs of a tile and a chunk are kept: of keys in [free_begin, free_end) all, of the others
// in [begin, end) those with from[q] <= j < to[q], or by_pair those that are active. (Where there
// are no others, from and to are not set.)
struct Mask {
  int begin = 0, end = 0;  // even: kernels take keys two by two
  int free_begin = 0, free_end = 0;
  bool by_pair = false;
  alignas(64) std::array<std::int32_t, kTile> from, to;
  alignas(64) std::uint32_t active[kKeyChunk][kTile];  // all bits or none

  void clear() { begin = end = free_begin = free_end = 0; }
  bool empty() const { return begin >= end; }
  bool has_gaps() const { return begin < free_begin || free_end < end; }
  bool keeps(int j, int q) const {
    const auto n = static_cast<std::size_t>(q);
    if (j >= free_begin && j < free_end) return true;
    return by_pair ? active[j][n] != 0 : j >= from[n] && j < to[n];
  }
};

// False: no pair is kept, the tile skips the chunk.
bool make_mask(const PartPlan& part, const Tile& tile, const Chunk& chunk, Mask& mask);

// Tiles that share the packed keys of a chunk.
inline constexpr int kGroupTiles = 8;

struct Group {
  std::int64_t lane = 0, begin = 0, end = 0;  // steps; begin == end: behind the last
  Interval allowed;                           // the key indices that the task may touch
  Interval keys;                              // of those, what the tiles reach
  int count = 0;
  std::array<Tile, kGroupTiles> tiles;
};

// One chunk of keys for the tiles of a group. A group that reaches no key has one job, whose chunk
// is empty.
struct Job {
  Group* group = nullptr;
  Chunk chunk;
  bool first = false, last = false;  // of its group
};

// The jobs of a task in order, group by group, ascending chunks in each.
class Jobs {
 public:
  // idle_tiles: whether tiles that reach no key count.
  Jobs(const PartTask& task, std::int64_t length, bool idle_tiles);

  // False: there are no more. A job is valid until the third call from its own.
  bool next(Job& job);

 private:
  bool next_group();

  const PartTask& task_;
  std::int64_t length_;
  bool idle_tiles_;
  Group groups_[3];
  Group* group_ = nullptr;
  std::int64_t chunk_ = 0;  // the first key index of the next one
};

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
