#include "ops/attention/attention_backward_plan.h"

#include <algorithm>

#include "base/integers.h"

namespace longstride::ops::cuda {

namespace {

std::int32_t narrow(std::int64_t x) { return static_cast<std::int32_t>(x); }

// Whether each query sees itself, so that a launch of the part reaches every row and every key.
bool covers(const DevicePart& part) {
  const bool own = part.type == PartType::dense || part.type == PartType::local ||
                   part.type == PartType::column || part.type == PartType::row;
  const std::int32_t edges = part.type == PartType::row;
  return own && part.pass >= 0 && part.masked == 0 && part.first == 0 && part.newest == 0 &&
         part.first_end == kPositionLimit && part.begin_edges == edges && part.edges_end == edges;
}

// Keys of lane 0 that queries below `length` may see.
std::int64_t keys_of(const DevicePart& part, std::int64_t length) {
  std::int64_t end = std::min<std::int64_t>(length, part.first_end);
  if (part.type == PartType::summary || part.type == PartType::previous_row)
    end = part.fold.floor(narrow(length - 1));
  return keys_before(part, 0, narrow(end));
}

// Enough blocks for every multiprocessor of a large card to hold some, where the work can be cut.
constexpr std::int64_t kBlocks = 512;
constexpr std::int64_t kQueryTilesOfSplit = 4;  // at least
constexpr std::int64_t kSplits = 64;            // at most

void split(BackwardLaunch& launch, std::int64_t batch) {
  auto& g = launch.geometry;
  if (g.tiles_a_block > 0 || g.shift >= 0 || launch.heads.empty()) return;
  const std::int64_t blocks = launch.blocks(batch);
  if (blocks == 0 || 2 * blocks > kBlocks) return;
  g.splits = narrow(std::clamp<std::int64_t>(
      std::min(kBlocks / blocks, g.query_tiles / kQueryTilesOfSplit), 1, kSplits));
}

}  // namespace

BackwardGeometry backward_geometry(const DevicePart& part, std::int64_t length, BackwardTile tile) {
  BackwardGeometry g;
  g.pitch = tile.keys;
  if (part.type == PartType::listed) {
    const std::int64_t block = part.fold.by, blocks = ceil_div(length, block);
    g.tiles_a_block = narrow(ceil_div(std::min(block, length), tile.keys));
    g.key_tiles = narrow(blocks * g.tiles_a_block);
    g.query_lanes = narrow(blocks);
    g.query_tiles = narrow(ceil_div(std::min(block, length), tile.queries));
    return g;
  }
  if (part.type == PartType::column) {
    g.lanes = g.query_lanes = narrow(std::min<std::int64_t>(part.fold.by, length));
    const std::int64_t steps = ceil_div(length, part.fold.by);
    g.key_tiles = narrow(ceil_div(steps, tile.keys));
    g.query_tiles = narrow(ceil_div(steps, tile.queries));
    g.exclusive = g.key_tiles <= 1;
    return g;
  }
  const std::int64_t keys = keys_of(part, length);
  const bool rows = part.type == PartType::row || part.type == PartType::previous_row;
  if (rows && part.fold.by <= tile.keys) {
    g.pitch = tile.keys / part.fold.by * part.fold.by;
    g.exclusive = 1;
    g.shift = part.type == PartType::row ? 0 : part.fold.by;
    g.query_tiles = narrow(ceil_div(g.pitch, tile.queries));
    g.key_tiles = narrow(ceil_div(keys, g.pitch));
    return g;
  }
  g.key_tiles = narrow(ceil_div(keys, tile.keys));
  g.query_tiles = narrow(ceil_div(length, tile.queries));
  g.exclusive = g.key_tiles <= 1;
  return g;
}

BackwardLaunches backward_launches(const PlanTables& tables, std::int64_t batch,
                                   std::int64_t length, const BackwardTiles& tiles,
                                   std::size_t at_once, bool without_line) {
  BackwardLaunches launches;
  std::vector<std::vector<std::int32_t>> parts_of(static_cast<std::size_t>(tables.heads));
  std::vector<bool> written(parts_of.size());
  for (const PassGroup& group : tables.groups)
    for (const HeadPass& pass : group.heads) {
      if (without_line && group.stride == 0) {
        written[static_cast<std::size_t>(pass.head)] = true;
        continue;
      }
      auto& parts = parts_of[static_cast<std::size_t>(pass.head)];
      for (std::int32_t p = pass.first_part; p < pass.first_part + pass.parts; ++p)
        if (tables.parts[static_cast<std::size_t>(p)].pass == pass.pass) parts.push_back(p);
    }
  for (std::size_t h = 0; h < parts_of.size(); ++h) {
    auto& parts = parts_of[h];
    if (written[h]) continue;
    const auto covering = std::find_if(parts.begin(), parts.end(), [&](std::int32_t p) {
      return covers(tables.parts[static_cast<std::size_t>(p)]);
    });
    if (covering != parts.end())
      std::rotate(parts.begin(), covering, covering + 1);
    else
      launches.cleared.push_back(narrow(static_cast<std::int64_t>(h)));
  }
  for (std::size_t round = 0;; ++round) {
    const std::size_t begin = launches.list.size();
    bool any = false;
    for (std::size_t h = 0; h < parts_of.size(); ++h) {
      if (round >= parts_of[h].size()) continue;
      any = true;
      const std::int32_t p = parts_of[h][round];
      const DevicePart& part = tables.parts[static_cast<std::size_t>(p)];
      BackwardGeometry g = backward_geometry(part, length, tiles.whole);
      const bool whole = g.exclusive != 0;
      if (!whole) g = backward_geometry(part, length, tiles.other);
      if (g.key_tiles == 0) continue;
      const bool stores = round == 0 && !written[h] && covers(part);
      auto launch = launches.list.begin() + static_cast<std::ptrdiff_t>(begin);
      while (launch != launches.list.end() &&
             !(launch->geometry == g && launch->whole == whole && launch->stores == stores &&
               launch->heads.size() < at_once))
        ++launch;
      if (launch == launches.list.end())
        launch = launches.list.insert(launch, BackwardLaunch{g, whole, stores, {}});
      launch->heads.push_back({narrow(static_cast<std::int64_t>(h)), p});
    }
    if (!any) break;
  }
  for (BackwardLaunch& launch : launches.list) split(launch, batch);
  return launches;
}

BackwardScratch backward_scratch(const BackwardLaunches& launches, std::int64_t batch,
                                 std::int64_t length, std::int64_t heads,
                                 const BackwardTiles& tiles, std::int64_t qk_width,
                                 std::int64_t v_width) {
  const auto whole = [](std::int64_t floats) { return ceil_div(floats, 4) * 4; };
  std::int64_t queries = 0, keys = 0;
  BackwardScratch s;
  for (const BackwardLaunch& launch : launches.list) {
    const std::int64_t shared = launch.shared_tiles(batch);
    const BackwardTile tile = launch.whole ? tiles.whole : tiles.other;
    s.counters += shared;
    queries = std::max(queries, shared * tile.queries * qk_width);
    if (launch.geometry.splits > 1)
      keys = std::max(keys, launch.blocks(batch) * tile.keys * (qk_width + v_width));
  }
  s.done = whole(2 * batch * heads * length);
  s.queries = s.done + whole(s.counters);
  s.keys = s.queries + whole(queries);
  s.size = s.keys + whole(keys);
  return s;
}

}  // namespace longstride::ops::cuda
