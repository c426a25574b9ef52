#include "ops/attention/attention_amx_lane.h"

#include <algorithm>

namespace longstride::ops::cpu {

QueryTile query_tile(const LaneBlock& lane, std::int64_t first, int most) {
  QueryTile tile = {first,     static_cast<int>(std::min<std::int64_t>(lane.queries - first, most)),
                    lane.keys, 0,
                    0,         lane.keys};
  for (std::int64_t n = first; n < first + tile.rows; ++n) {
    const std::int64_t from = lane.from[n], to = lane.to[n];
    tile.all_begin = std::max(tile.all_begin, from);
    tile.all_end = std::min(tile.all_end, to);
    if (from >= to) {
      tile.all_end = 0;
      continue;
    }
    tile.any_begin = std::min(tile.any_begin, from);
    tile.any_end = std::max(tile.any_end, to);
  }
  return tile;
}

std::uint64_t kept_keys(const LaneBlock& lane, std::int64_t n, std::int64_t key) {
  std::uint64_t kept = 0;
  const std::int64_t begin = std::max<std::int64_t>(key, lane.from[n]);
  const std::int64_t end = std::min<std::int64_t>(key + kChunk, lane.to[n]);
  for (std::int64_t t = begin; t < end; ++t)
    if (lane.part->keeps(lane.query[n], lane.key[t])) kept |= std::uint64_t{1} << (t - key);
  return kept;
}

ForwardSpace::ForwardSpace(Arena& arena, std::int64_t qk_width, std::int64_t v_width)
    : q_tiles(pair_tiles(qk_width)),
      v_tiles(float_tiles(v_width)),
      q(arena.take<TileData>(kForwardTiles * q_tiles)),
      out(arena.take<TileData>(kForwardTiles * v_tiles)),
      sum(arena.take<TileData>(kForwardTiles)),
      top(arena.take<float>(kForwardTiles * kSide)),
      k(arena.take<TileData>(4 * q_tiles)),
      v(arena.take<TileData>(2 * v_tiles)),
      gathered(arena.take<TileData>(2 * v_tiles)),
      score{arena.take<TileData>(4), arena.take<TileData>(4)},
      weight(arena.take<TileData>(2)),
      peak(arena.take<TileData>(1)),
      zero(arena.take<bf16>(std::max(qk_width, v_width))) {}

BackwardSpace::BackwardSpace(Arena& arena, std::int64_t queries, std::int64_t qk_width,
                             std::int64_t v_width)
    : q_pairs(pair_tiles(qk_width)),
      v_pairs(pair_tiles(v_width)),
      q_floats(float_tiles(qk_width)),
      v_floats(float_tiles(v_width)) {
  const std::int64_t blocks = ceil_div(queries, kQueryBlock);
  q_by_column = arena.take<TileData>(blocks * 2 * q_pairs);
  dout_by_column = arena.take<TileData>(blocks * 2 * v_pairs);
  q_by_row = arena.take<TileData>(blocks * q_floats);
  dout_by_row = arena.take<TileData>(blocks * v_floats);
  dq = arena.take<TileData>(blocks * 2 * q_floats);
  lse = arena.take<float>(blocks * kQueryBlock);
  mean = arena.take<float>(blocks * kQueryBlock);
  wild = arena.take<std::uint32_t>(blocks);
  block = arena.take<QueryTile>(blocks);
  k = arena.take<TileData>(4 * q_pairs);
  v = arena.take<TileData>(4 * v_pairs);
  k_transposed = arena.take<TileData>(2 * q_floats);
  dk = arena.take<TileData>(4 * q_floats);
  dv = arena.take<TileData>(4 * v_floats);
  gathered = arena.take<TileData>(2 * q_pairs + 2 * std::max(q_pairs, v_pairs));
  score = arena.take<TileData>(8);
  dweight = arena.take<TileData>(8);
  weight = arena.take<TileData>(4);
  dscore = arena.take<TileData>(4);
  dscore_by_row = arena.take<TileData>(4);
  zero = arena.take<bf16>(std::max(qk_width, v_width));
}

}  // namespace longstride::ops::cpu
