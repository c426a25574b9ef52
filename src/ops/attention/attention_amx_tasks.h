// How attention on tiles is cut into tasks that touch different rows.
//
// A piece is some lanes of a part and an interval of positions: whole lanes where lanes are short,
// a segment of a lane where it is long. Forward: a task takes the queries of a piece and all their
// keys. Backward: a task takes the queries of a piece and the keys at the positions of the same
// lanes' piece d segments before it. Tasks of one round d share neither queries nor keys, so each
// adds to dQ, dK and dV in place; rounds follow each other. A lane that keeps to a window needs two
// rounds, a dense one as many as it has segments, and no task needs memory of its own for keys.
// Except where all queries see the same few keys (global): there each segment sums the gradients of
// the keys apart, all segments at once, and the sums are added in order.
#pragma once

#include <vector>

#include "ops/attention/attention_amx_lane.h"

namespace longstride::ops::cpu {

// reach() of all steps of a part, computed once for all heads that have it.
class ReachTable {
 public:
  ReachTable(const PartPlan& part, std::int64_t length);
  const Interval& at(std::int64_t lane, std::int64_t step) const {
    return reach_[static_cast<std::size_t>(lane * steps_ + step)];
  }

 private:
  std::int64_t steps_;
  std::vector<Interval> reach_;
};

struct TileTask {
  const PartPlan* part = nullptr;
  const ReachTable* reach = nullptr;
  bool first = true, last = true;  // part of its union
  bool fresh = false;              // the first task that adds to the gradients of its positions
  bool overwrite = false;          // and writes all of them
  std::int64_t batch = 0, head = 0;
  std::int64_t lane_begin = 0, lane_end = 0;
  Interval queries, keys;  // positions
  // Of keys whose gradients are summed apart: where this task puts its sum; or, without queries,
  // the number of sums to be added to the gradients of the keys.
  std::int64_t slot = -1, slots = 0;
};

// Keys that may be summed apart: positions [0, kFewKeys).
inline constexpr std::int64_t kFewKeys = 64;

class TileTasks {
 public:
  TileTasks(const AttentionPlan& plan, std::int64_t batch, std::int64_t length, bool backward);
  // Levels follow each other; tasks of one level may run together.
  const std::vector<std::vector<TileTask>>& levels() const { return levels_; }
  // Queries of the longest lane of a task.
  std::int64_t most_queries() const { return most_queries_; }
  // Most sums of keys apart that a head has.
  std::int64_t slots() const { return slots_; }

 private:
  std::vector<std::vector<ReachTable>> tables_;  // [kind][part]
  std::vector<std::vector<TileTask>> levels_;
  void add_level(std::size_t& level, const std::vector<TileTask>& tasks, const AttentionPlan& plan,
                 std::size_t kind, std::int64_t batch);

  std::int64_t most_queries_ = 0, slots_ = 0;
};

// A lane of a task, as the kernels want it. Reuses its memory; the block points into it.
class LaneLists {
 public:
  // Key 0 is a multiple of `align` of the lane's keys.
  LaneBlock list(const TileTask& task, std::int64_t lane, std::int64_t align);

 private:
  std::vector<Position> query_, key_;
  std::vector<std::int32_t> from_, to_;
};

}  // namespace longstride::ops::cpu
