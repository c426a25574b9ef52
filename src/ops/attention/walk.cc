#include "ops/attention/walk.h"

#include "base/integers.h"

namespace longstride::ops {

std::int64_t steps_below(const PartPlan& part, std::int64_t lane, std::int64_t length) {
  std::int64_t low = 0, high = part.steps(lane);  // positions ascend within a lane
  if (part.query(lane, high - 1) < length) return high;
  while (low < high) {
    const std::int64_t middle = low + (high - low) / 2;
    if (part.query(lane, middle) < length)
      low = middle + 1;
    else
      high = middle;
  }
  return low;
}

std::vector<Span> spans(const PartPlan& part, std::int64_t length, std::int64_t queries,
                        bool whole_lanes) {
  std::vector<Span> list;
  std::int64_t gathered = 0;  // queries of the span of whole lanes that is still growing
  for (std::int64_t lane = 0; lane < part.lanes(); ++lane) {
    const std::int64_t steps = steps_below(part, lane, length);
    if (steps == 0) continue;
    if (steps > queries && !whole_lanes) {
      for (std::int64_t s = 0; s < steps; s += queries)
        list.push_back({lane, lane + 1, s, std::min(steps, s + queries)});
      gathered = 0;
      continue;
    }
    if (gathered == 0 || gathered + steps > queries) {
      list.push_back({lane, lane + 1, 0, part.length()});
      gathered = 0;
    }
    list.back().lane_end = lane + 1;
    gathered += steps;
  }
  std::reverse(list.begin(), list.end());
  return list;
}

namespace {

// Enough queries for a task to be worth starting.
constexpr std::int64_t kQueries = kGroupTiles * kTile;

// Queries of a task, whole groups, where all heads together are to give some kTasks tasks.
std::int64_t queries_of_task(std::int64_t length, std::int64_t heads) {
  return std::max<std::int64_t>(1, length * heads / (kTasks * kQueries)) * kQueries;
}

// A task of any head, before it is given to one, and its level within the part.
struct Piece {
  PartTask task;
  std::int64_t level = 0;
};

// The part of the queries of `lanes` in positions [begin, end), as a span.
Span span_of(const PartPlan& part, Span lanes, Interval positions) {
  if (lanes.lane_end - lanes.lane_begin == 1) {
    lanes.step_begin = steps_below(part, lanes.lane_begin, positions.begin);
    lanes.step_end = steps_below(part, lanes.lane_begin, positions.end);
    return lanes;
  }
  const std::int64_t size = part.steps(0);  // blocks of positions hold whole lanes
  return {positions.begin / size, ceil_div(positions.end, size), 0, part.length()};
}

// The first step in [low, high) for which holds(reach) is true; it stays so.
template <class Holds>
std::int64_t first_step(const PartPlan& part, std::int64_t lane, std::int64_t low,
                        std::int64_t high, Holds&& holds) {
  while (low < high) {
    const std::int64_t middle = low + (high - low) / 2;
    if (holds(part.reach(lane, middle)))
      high = middle;
    else
      low = middle + 1;
  }
  return low;
}

// The steps of a lane of the span that may reach keys at these positions.
Interval steps_reaching(const PartPlan& part, std::int64_t lane, const Span& span,
                        std::int64_t length, Interval keys) {
  const std::int64_t end = std::min(span.step_end, steps_below(part, lane, length));
  const std::int64_t first = part.keys_before(lane, keys.begin),
                     last = part.keys_before(lane, keys.end);
  if (first == last) return {};
  return {
      first_step(part, lane, span.step_begin, end, [&](Interval r) { return r.end > first; }),
      first_step(part, lane, span.step_begin, end, [&](Interval r) { return r.begin >= last; })};
}

// The lanes and steps of the span that may reach keys at these positions; lane_end = 0: none.
Span trimmed(const PartPlan& part, Span span, std::int64_t length, Interval keys) {
  if (span.lane_end - span.lane_begin == 1) {
    const Interval steps = steps_reaching(part, span.lane_begin, span, length, keys);
    span.step_begin = steps.begin, span.step_end = steps.end;
    if (steps.empty()) span.lane_end = 0;
    return span;
  }
  for (std::int64_t lane = span.lane_begin; lane < span.lane_end; ++lane)
    if (!steps_reaching(part, lane, span, length, keys).empty()) return span;
  return {};
}

// The lanes of `lanes`, cut into blocks of `size` positions.
void cut_into_blocks(const PartPlan& part, std::int64_t length, const Span& lanes,
                     std::int64_t size, std::vector<Piece>& pieces) {
  const std::size_t start = pieces.size();
  std::int64_t farthest = 1;
  for (std::int64_t i = 0; i * size < length; ++i) {
    const Span span = span_of(part, lanes, {i * size, std::min(length, (i + 1) * size)});
    for (std::int64_t j = i; j >= 0; --j) {
      const Interval keys = {j * size, (j + 1) * size};
      const bool diagonal = i == j;
      const Span taken = diagonal ? span : trimmed(part, span, length, keys);
      if (taken.lane_end == 0 || taken.step_begin >= taken.step_end) continue;
      pieces.push_back({{&part, 0, 0, 0, taken, keys, diagonal, diagonal}, diagonal ? -1 : i + j});
      farthest = std::max(farthest, i - j);
    }
  }
  for (std::size_t n = start; n < pieces.size(); ++n)
    pieces[n].level = pieces[n].level < 0 ? 0 : 1 + pieces[n].level % farthest;
}

std::vector<Piece> gradient_pieces(const PartPlan& part, std::int64_t length, std::int64_t heads) {
  const bool together = part.lanes_share_keys() && part.lanes() > 1;
  const std::int64_t owners = together ? 1 : part.lanes();
  const std::int64_t steps = part.steps(0);
  const std::int64_t blocks = ceil_div(kTasks, heads * owners);
  std::vector<Piece> pieces;
  // Blocks of at least kQueries queries of a lane, whole lanes where they are cut together.
  const std::int64_t distance = steps > 1 ? part.query(0, 1) - part.query(0, 0) : 1;
  const std::int64_t unit = together ? ceil_div(kQueries, steps) * steps : kQueries * distance;
  const std::int64_t extent = together ? length : std::min(length, steps * distance);
  const std::int64_t size = ceil_div(ceil_div(extent, blocks), unit) * unit;
  if (size >= extent || (!together && steps <= 2 * kQueries)) {
    const std::int64_t queries = together ? length + 1 : queries_of_task(length, heads);
    for (const Span& span : spans(part, length, queries, true))
      pieces.push_back({{&part, 0, 0, 0, span, kAllKeys, true, true}, 0});
  } else if (together) {
    cut_into_blocks(part, length, {0, part.lanes(), 0, 0}, size, pieces);
  } else {
    for (std::int64_t lane = 0; lane < part.lanes(); ++lane)
      cut_into_blocks(part, length, {lane, lane + 1, 0, 0}, size, pieces);
  }
  return pieces;
}

}  // namespace

Levels forward_tasks(const AttentionPlan& plan, std::int64_t batch, std::int64_t length) {
  Levels levels;
  const std::int64_t heads = batch * static_cast<std::int64_t>(plan.kind_of_head.size());
  for (std::size_t kind = 0; kind < plan.kinds.size(); ++kind) {
    const auto& parts = plan.kinds[kind].parts;
    if (levels.size() < parts.size()) levels.resize(parts.size());
    for (std::size_t number = 0; number < parts.size(); ++number)
      for (const Span& span : spans(parts[number], length, queries_of_task(length, heads), false))
        for_each_head(plan, kind, batch, [&](std::int64_t b, std::int64_t h) {
          levels[number].push_back({&parts[number], number, b, h, span});
        });
  }
  return levels;
}

Levels gradient_tasks(const AttentionPlan& plan, std::int64_t batch, std::int64_t length) {
  Levels levels;
  const std::int64_t heads = batch * static_cast<std::int64_t>(plan.kind_of_head.size());
  for (std::size_t kind = 0; kind < plan.kinds.size() && heads * length > 0; ++kind) {
    const HeadPlan& head = plan.kinds[kind];
    std::size_t level = 0;  // the first of the part
    for (std::size_t number = 0; number < head.parts.size(); ++number) {
      std::size_t last = level;
      for (Piece& piece : gradient_pieces(head.parts[number], length, heads)) {
        const std::size_t at = level + static_cast<std::size_t>(piece.level);
        last = std::max(last, at);
        if (levels.size() <= at) levels.resize(at + 1);
        piece.task.number = number;
        piece.task.first_of_queries = piece.task.first_of_queries && number == 0;
        piece.task.first_of_keys =
            piece.task.first_of_keys && number == 0 && sees_itself(head.parts.front());
        for_each_head(plan, kind, batch, [&](std::int64_t b, std::int64_t h) {
          piece.task.batch = b, piece.task.head = h;
          levels[at].push_back(piece.task);
        });
      }
      level = last + 1;
    }
  }
  return levels;
}

bool sees_itself(const PartPlan& part) {
  const Part& p = part.part();
  return std::holds_alternative<Dense>(p) || std::holds_alternative<Local>(p) ||
         std::holds_alternative<Column>(p) || std::holds_alternative<Row>(p);
}

Tile make_tile(const PartPlan& part, std::int64_t lane, std::int64_t step, int rows,
               Interval keys) {
  Tile tile;
  tile.rows = rows;
  tile.any = {part.keys(lane), 0};
  tile.all = {0, part.keys(lane)};
  // In all folds the queries of a lane are evenly apart.
  const Position query = part.query(lane, step), distance = part.query(lane, step + 1) - query;
  const Interval first = part.reach(lane, step);
  const std::int64_t steps = rows - 1;
  const Interval last = steps == 0 ? first : part.reach(lane, step + steps);
  // Each end stays or moves by one key at each step.
  const std::int64_t begin_moves = last.begin - first.begin, end_moves = last.end - first.end;
  const bool even = part.even() && (begin_moves == 0 || begin_moves == steps) &&
                    (end_moves == 0 || end_moves == steps);
  for (int r = 0; r < rows; ++r) {
    const auto q = static_cast<std::size_t>(r);
    tile.query[q] = query + r * distance;
    Interval reach = even ? Interval{first.begin + (begin_moves == 0 ? 0 : r),
                                     first.end + (end_moves == 0 ? 0 : r)}
                          : part.reach(lane, step + r);
    reach = {std::max(reach.begin, keys.begin), std::min(reach.end, keys.end)};
    if (reach.empty()) {
      tile.all = {};
      continue;
    }
    tile.reach[q] = reach;
    tile.any = {std::min(tile.any.begin, reach.begin), std::max(tile.any.end, reach.end)};
    tile.all = {std::max(tile.all.begin, reach.begin), std::min(tile.all.end, reach.end)};
  }
  return tile;
}

Chunk make_chunk(const PartPlan& part, std::int64_t lane, std::int64_t first, Interval keys) {
  Chunk chunk;
  chunk.first = first;
  chunk.begin = static_cast<int>(std::max<std::int64_t>(keys.begin - first, 0));
  chunk.end = static_cast<int>(std::min(keys.end - first, kKeyChunk));
  if (chunk.begin >= chunk.end) return chunk;
  const bool even = part.even();
  const Position origin = even ? part.key(lane, 0) : 0;
  const Position distance = even ? part.key(lane, 1) - origin : 0;
  for (int j = chunk.begin; j < chunk.end; ++j)
    chunk.position[static_cast<std::size_t>(j)] =
        even ? origin + (first + j) * distance : part.key(lane, first + j);
  return chunk;
}

Jobs::Jobs(const PartTask& task, std::int64_t length, bool idle_tiles)
    : task_(task), length_(length), idle_tiles_(idle_tiles) {}

bool Jobs::next_group() {
  const PartPlan& part = *task_.part;
  const Group* const before = group_;
  std::int64_t lane = before == nullptr ? task_.span.lane_begin : before->lane;
  std::int64_t begin = before == nullptr ? task_.span.step_begin : before->end;
  std::int64_t end = 0;
  for (; lane < task_.span.lane_end; ++lane, begin = task_.span.step_begin) {
    end = std::min(task_.span.step_end, steps_below(part, lane, length_));
    if (begin < end) break;
  }
  if (lane >= task_.span.lane_end) return false;
  group_ = before == nullptr || before == groups_ + 2 ? groups_ : group_ + 1;
  Group& group = *group_;
  group.lane = lane, group.begin = begin;
  group.end = std::min(end, begin + kGroupTiles * kTile);
  group.allowed = {part.keys_before(lane, task_.keys.begin),
                   part.keys_before(lane, task_.keys.end)};
  group.keys = {group.allowed.end, 0};
  group.count = 0;
  for (std::int64_t step = group.begin; step < group.end; step += kTile) {
    const auto rows = static_cast<int>(std::min<std::int64_t>(kTile, group.end - step));
    Tile& tile = group.tiles[static_cast<std::size_t>(group.count)];
    tile = make_tile(part, lane, step, rows, group.allowed);
    if (!tile.any.empty())
      group.keys = {std::min(group.keys.begin, tile.any.begin),
                    std::max(group.keys.end, tile.any.end)};
    else if (!idle_tiles_)
      continue;
    ++group.count;
  }
  chunk_ = group.keys.begin / kKeyChunk * kKeyChunk;
  return true;
}

bool Jobs::next(Job& job) {
  const bool fresh = group_ == nullptr || chunk_ >= group_->keys.end;
  if (fresh && !next_group()) return false;
  job.group = group_;
  job.first = fresh;
  job.chunk =
      group_->keys.empty() ? Chunk() : make_chunk(*task_.part, group_->lane, chunk_, group_->keys);
  chunk_ += kKeyChunk;
  job.last = chunk_ >= group_->keys.end;
  return true;
}

namespace {

// A pair may belong to an earlier part of the union: every pair is asked for. False: none is kept.
bool activate_by_pair(const PartPlan& part, const Tile& tile, const Chunk& chunk, Mask& mask) {
  int begin = mask.end, end = mask.begin;
  for (int j = mask.begin; j < mask.end; ++j)
    for (int q = 0; q < kTile; ++q) {
      const auto n = static_cast<std::size_t>(q);
      const bool kept = q < tile.rows && j >= mask.from[n] && j < mask.to[n] &&
                        part.keeps(tile.query[n], chunk.position[static_cast<std::size_t>(j)]);
      mask.active[j][n] = kept ? ~0u : 0u;
      if (kept) begin = std::min(begin, j), end = j + 1;
    }
  mask.begin = begin, mask.end = end;
  mask.free_begin = mask.free_end = end;
  return begin < end;
}

// Keys that no row keeps, up to a pair of keys at both ends.
void widen(Mask& mask) {
  if (mask.begin % 2 != 0) {
    --mask.begin;
    if (mask.by_pair) std::fill_n(mask.active[mask.begin], kTile, 0u);
  }
  if (mask.end % 2 != 0) {
    if (mask.by_pair) std::fill_n(mask.active[mask.end], kTile, 0u);
    ++mask.end;
  }
}

}  // namespace

bool make_mask(const PartPlan& part, const Tile& tile, const Chunk& chunk, Mask& mask) {
  const auto local = [&](std::int64_t t) {
    return static_cast<int>(std::clamp<std::int64_t>(t - chunk.first, chunk.begin, chunk.end));
  };
  mask.begin = local(tile.any.begin);
  mask.end = local(tile.any.end);
  mask.by_pair = part.masked();
  if (mask.empty()) {
    mask.clear();
    return false;
  }
  mask.free_begin = local(tile.all.begin), mask.free_end = local(tile.all.end);
  if (mask.free_begin >= mask.free_end) mask.free_begin = mask.free_end = mask.end;
  const bool odd = mask.begin % 2 != 0 || mask.end % 2 != 0;
  if (!odd && !mask.by_pair && !mask.has_gaps()) return true;
  for (std::size_t q = 0; q < kTile; ++q)
    mask.from[q] = local(tile.reach[q].begin), mask.to[q] = local(tile.reach[q].end);
  if (mask.by_pair && !activate_by_pair(part, tile, chunk, mask)) {
    mask.clear();
    return false;
  }
  widen(mask);
  return true;
}

}  // namespace longstride::ops
