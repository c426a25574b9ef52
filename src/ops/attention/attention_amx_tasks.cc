#include "ops/attention/attention_amx_tasks.h"

#include <algorithm>
#include <variant>

#include "base/threads.h"
#include "ops/attention/walk.h"

namespace longstride::ops::cpu {

namespace {

struct Piece {
  std::int64_t lane_begin = 0, lane_end = 0;
  Interval positions;
  std::int64_t most_queries = 0;  // of a lane
};

// [group of lanes][segment]: about `target` queries each; groups share neither queries nor keys.
std::vector<std::vector<Piece>> pieces(const PartPlan& part, std::int64_t length,
                                       std::int64_t target) {
  std::vector<std::vector<Piece>> groups;
  const std::int64_t steps = part.steps(0);  // lane 0 has most
  if (std::holds_alternative<Column>(part.part())) {
    const std::int64_t lanes = std::min(part.lanes(), length);
    const std::int64_t together = std::max<std::int64_t>(1, target / steps);
    const std::int64_t segment = std::min(steps, target) * part.lanes();
    for (std::int64_t lane = 0; lane < lanes; lane += together) {
      groups.emplace_back();
      for (Position p = 0; p < length; p += segment)
        groups.back().push_back({lane,
                                 std::min(lanes, lane + together),
                                 {p, std::min(length, p + segment)},
                                 std::min(steps, target)});
    }
    return groups;
  }
  const std::int64_t segment = steps <= target ? target / steps * steps : target;
  groups.emplace_back();
  for (Position p = 0; p < length; p += segment) {
    const Position end = std::min(length, p + segment);
    groups[0].push_back(
        {part.lane_of(p), part.lane_of(end - 1) + 1, {p, end}, std::min(steps, segment)});
  }
  return groups;
}

// Whether some query of the task reaches a key of it.
bool meets(const TileTask& task) {
  for (std::int64_t lane = task.lane_begin; lane < task.lane_end; ++lane) {
    const std::int64_t begin = steps_below(*task.part, lane, task.queries.begin);
    const std::int64_t end = steps_below(*task.part, lane, task.queries.end);
    if (begin == end) continue;
    const std::int64_t low =
        std::max(task.part->keys_before(lane, task.keys.begin), task.reach->at(lane, begin).begin);
    if (low <
        std::min(task.part->keys_before(lane, task.keys.end), task.reach->at(lane, end - 1).end))
      return true;
  }
  return false;
}

// All lanes see the same few keys: those of the first positions.
bool has_few_keys(const PartPlan& part) {
  return std::holds_alternative<Global>(part.part()) && part.keys(0) <= kFewKeys;
}

// Queries a piece: enough for a task to be worth starting, few enough for 64 of them in four heads
// of 4,096 positions or more.
std::int64_t target_queries(std::int64_t length, bool backward) {
  constexpr std::int64_t kLeast = 256, kMost = 1024;
  return backward ? std::clamp(ceil_div(ceil_div(length, 16), kChunk) * kChunk, kLeast, kMost)
                  : 2 * kLeast;
}

// The positions of the keys [begin, end) of a lane; they ascend.
void list_keys(const PartPlan& part, std::int64_t lane, std::int64_t begin, std::int64_t end,
               Position* to) {
  if (begin == end) return;
  const Position first = part.key(lane, begin), last = part.key(lane, end - 1);
  const std::int64_t count = end - begin;
  const bool column = std::holds_alternative<Column>(part.part());
  if (column || last - first == count - 1) {
    const std::int64_t stride = count > 1 ? (last - first) / (count - 1) : 0;
    for (std::int64_t n = 0; n < count; ++n) to[n] = first + n * stride;
    return;
  }
  const std::int64_t half = begin + count / 2;
  list_keys(part, lane, begin, half, to);
  list_keys(part, lane, half, end, to + count / 2);
}

}  // namespace

ReachTable::ReachTable(const PartPlan& part, std::int64_t length)
    : steps_(part.steps(0)), reach_(static_cast<std::size_t>(part.lanes() * steps_)) {
  constexpr std::int64_t kGrain = 2048;
  parallel_ranges(part.lanes() * steps_, kGrain, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t n = begin; n < end; ++n) {
      const std::int64_t lane = n / steps_, step = n % steps_;
      if (step < part.steps(lane) && part.query(lane, step) < length)
        reach_[static_cast<std::size_t>(n)] = part.reach(lane, step);
    }
  });
}

TileTasks::TileTasks(const AttentionPlan& plan, std::int64_t batch, std::int64_t length,
                     bool backward) {
  if (length == 0 || batch == 0) return;
  const std::int64_t target = target_queries(length, backward);
  for (const HeadPlan& kind : plan.kinds) {
    tables_.emplace_back();
    for (const PartPlan& part : kind.parts) tables_.back().emplace_back(part, length);
  }
  for (std::size_t kind = 0; kind < plan.kinds.size(); ++kind) {
    const auto& parts = plan.kinds[kind].parts;
    std::size_t level = 0;
    for (std::size_t p = 0; p < parts.size(); ++p) {
      TileTask task;
      task.part = &parts[p];
      task.reach = &tables_[kind][p];
      task.first = p == 0;
      task.last = p + 1 == parts.size();
      const auto groups = pieces(parts[p], length, target);
      const bool apart = backward && groups[0].size() > 1 && has_few_keys(parts[p]);
      const std::size_t rounds = backward && !apart ? groups[0].size() : 1;
      for (std::size_t round = 0; round < rounds; ++round) {
        std::vector<TileTask> tasks;
        task.fresh = backward && p == 0 && round == 0;
        task.overwrite = task.fresh && sees_itself(parts[p]);
        for (const auto& group : groups)
          for (std::size_t s = group.size(); s-- > round;) {
            task.lane_begin = group[s].lane_begin;
            task.lane_end = group[s].lane_end;
            task.queries = group[s].positions;
            task.keys = backward && !apart ? group[s - round].positions : Interval{0, length};
            task.slot = apart ? static_cast<std::int64_t>(s) : -1;
            most_queries_ = std::max(most_queries_, group[s].most_queries);
            if (!backward || task.fresh || apart || meets(task)) tasks.push_back(task);
          }
        add_level(level, tasks, plan, kind, batch);
      }
      if (!apart) continue;
      TileTask sum;
      sum.part = &parts[p];
      sum.slots = static_cast<std::int64_t>(groups[0].size());
      slots_ = std::max(slots_, sum.slots);
      add_level(level, {sum}, plan, kind, batch);
    }
  }
}

// The tasks, for all heads of the kind.
void TileTasks::add_level(std::size_t& level, const std::vector<TileTask>& tasks,
                          const AttentionPlan& plan, std::size_t kind, std::int64_t batch) {
  if (tasks.empty()) return;
  if (levels_.size() <= level) levels_.resize(level + 1);
  for (const TileTask& t : tasks)
    for_each_head(plan, kind, batch, [&](std::int64_t b, std::int64_t h) {
      levels_[level].push_back(t);
      levels_[level].back().batch = b;
      levels_[level].back().head = h;
    });
  ++level;
}

LaneBlock LaneLists::list(const TileTask& task, std::int64_t lane, std::int64_t align) {
  const PartPlan& part = *task.part;
  const std::int64_t begin = steps_below(part, lane, task.queries.begin);
  const std::int64_t end = steps_below(part, lane, task.queries.end);
  LaneBlock block;
  block.part = &part;
  block.masked = part.masked();
  block.queries = end - begin;
  if (block.queries == 0) return block;
  const std::int64_t low =
      std::max(part.keys_before(lane, task.keys.begin), task.reach->at(lane, begin).begin) / align *
      align;
  const std::int64_t high =
      std::min(part.keys_before(lane, task.keys.end), task.reach->at(lane, end - 1).end);
  block.keys = std::max<std::int64_t>(0, high - low);

  const auto padded = static_cast<std::size_t>(ceil_div(block.queries, kQueryBlock) * kQueryBlock);
  query_.resize(padded);
  from_.assign(padded, 0);
  to_.assign(padded, 0);
  key_.resize(static_cast<std::size_t>(block.keys));
  const Position first = part.query(lane, begin);
  const std::int64_t stride = block.queries > 1 ? part.query(lane, begin + 1) - first : 0;
  for (std::int64_t n = 0; n < block.queries; ++n) {
    const auto at = static_cast<std::size_t>(n);
    const Interval& reach = task.reach->at(lane, begin + n);
    query_[at] = first + n * stride;
    from_[at] =
        static_cast<std::int32_t>(std::clamp<std::int64_t>(reach.begin - low, 0, block.keys));
    to_[at] = static_cast<std::int32_t>(std::clamp<std::int64_t>(reach.end - low, 0, block.keys));
  }
  list_keys(part, lane, low, low + block.keys, key_.data());
  block.query = query_.data();
  block.key = key_.data();
  block.from = from_.data();
  block.to = to_.data();
  return block;
}

}  // namespace longstride::ops::cpu
