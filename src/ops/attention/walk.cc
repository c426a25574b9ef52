#include "ops/attention/walk.h"

namespace longstride::ops {

std::int64_t steps_below(const PartPlan& part, std::int64_t lane, std::int64_t length) {
  std::int64_t low = 0, high = part.steps(lane);  // positions ascend within a lane
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

std::vector<std::vector<PartTask>> part_tasks(const AttentionPlan& plan, std::int64_t batch,
                                              std::int64_t length, bool for_gradients) {
  // Enough queries for a task to be worth starting, few enough for many tasks.
  constexpr std::int64_t kQueries = 128;
  std::vector<std::vector<PartTask>> levels;
  for (std::size_t kind = 0; kind < plan.kinds.size(); ++kind) {
    const auto& parts = plan.kinds[kind].parts;
    if (levels.size() < parts.size()) levels.resize(parts.size());
    for (std::size_t number = 0; number < parts.size(); ++number) {
      const PartPlan& part = parts[number];
      // Where lanes share keys one task must own all of them: one span holds every lane.
      const std::int64_t queries = for_gradients && part.lanes_share_keys() ? length + 1 : kQueries;
      for (const Span& span : spans(part, length, queries, for_gradients))
        for (std::int64_t b = 0; b < batch; ++b)
          for (std::size_t h = 0; h < plan.kind_of_head.size(); ++h)
            if (plan.kind_of_head[h] == static_cast<std::int64_t>(kind))
              levels[number].push_back({&part, number, b, static_cast<std::int64_t>(h), span});
    }
  }
  return levels;
}

Tile make_tile(const PartPlan& part, std::int64_t lane, std::int64_t step, int rows) {
  Tile tile;
  tile.rows = rows;
  tile.any = {part.keys(lane), 0};
  tile.all = {0, part.keys(lane)};
  for (int r = 0; r < rows; ++r) {
    const auto q = static_cast<std::size_t>(r);
    tile.query[q] = part.query(lane, step + r);
    const Interval reach = part.reach(lane, step + r);
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
  for (int j = chunk.begin; j < chunk.end; ++j)
    chunk.position[static_cast<std::size_t>(j)] = part.key(lane, first + j);
  return chunk;
}

namespace {

void add_run(Mask& mask, int begin, int end, bool masked) {
  if (begin >= end) return;
  if (mask.runs > 0) {
    Run& last = mask.run[static_cast<std::size_t>(mask.runs - 1)];
    if (last.end == begin && last.masked == masked) {
      last.end = end;
      return;
    }
  }
  mask.run[static_cast<std::size_t>(mask.runs++)] = {begin, end, masked};
}

void activate_by_interval(const Tile& tile, std::int64_t first, int begin, int end, Mask& mask) {
  std::array<std::int32_t, kTile> from, to;
  const std::int64_t limit = kKeyChunk;
  for (std::size_t q = 0; q < kTile; ++q) {
    from[q] =
        static_cast<std::int32_t>(std::clamp<std::int64_t>(tile.reach[q].begin - first, 0, limit));
    to[q] =
        static_cast<std::int32_t>(std::clamp<std::int64_t>(tile.reach[q].end - first, 0, limit));
  }
  for (int j = begin; j < end; ++j)
    for (std::size_t q = 0; q < kTile; ++q)
      mask.active[j][q] = (j >= from[q] && j < to[q]) ? ~0u : 0u;
}

// A pair may belong to an earlier part of the union: every pair is asked for.
void make_masked_runs(const PartPlan& part, const Tile& tile, const Chunk& chunk, Mask& mask) {
  activate_by_interval(tile, chunk.first, mask.begin, mask.end, mask);
  for (int j = mask.begin; j < mask.end; ++j) {
    int kept = 0;
    for (int q = 0; q < tile.rows; ++q) {
      std::uint32_t& active = mask.active[j][q];
      if (active != 0 && !part.keeps(tile.query[static_cast<std::size_t>(q)],
                                     chunk.position[static_cast<std::size_t>(j)]))
        active = 0;
      kept += active != 0;
    }
    if (kept > 0) add_run(mask, j, j + 1, kept < tile.rows);
  }
  if (mask.runs == 0) return;
  mask.begin = mask.run[0].begin;
  mask.end = mask.run[static_cast<std::size_t>(mask.runs - 1)].end;
}

}  // namespace

bool make_mask(const PartPlan& part, const Tile& tile, const Chunk& chunk, Mask& mask) {
  const auto local = [&](std::int64_t t) {
    return static_cast<int>(std::clamp<std::int64_t>(t - chunk.first, chunk.begin, chunk.end));
  };
  mask.begin = local(tile.any.begin);
  mask.end = local(tile.any.end);
  mask.runs = 0;
  if (mask.begin >= mask.end) return false;
  if (part.masked()) {
    make_masked_runs(part, tile, chunk, mask);
    return mask.runs > 0;
  }
  int begin = local(tile.all.begin), end = local(tile.all.end);
  if (begin >= end) begin = end = mask.end;
  activate_by_interval(tile, chunk.first, mask.begin, begin, mask);
  activate_by_interval(tile, chunk.first, end, mask.end, mask);
  add_run(mask, mask.begin, begin, true);
  add_run(mask, begin, end, false);
  add_run(mask, end, mask.end, true);
  return true;
}

}  // namespace longstride::ops
