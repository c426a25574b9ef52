#include "bench/tile_pairs.h"

#include "ops/attention/walk.h"

namespace longstride::bench {

namespace {

// Keys of a tile whose pairs have to be asked for: those of the chunks that keep one.
std::int64_t masked_keys(const PartPlan& part, std::int64_t lane, const ops::Tile& tile) {
  std::int64_t keys = 0;
  for (std::int64_t t = tile.any.begin; t < tile.any.end;) {
    const std::int64_t first = t / ops::kKeyChunk * ops::kKeyChunk;
    const ops::Chunk chunk = ops::make_chunk(part, lane, first, tile.any);
    ops::Mask mask;
    if (ops::make_mask(part, tile, chunk, mask)) keys += chunk.end - chunk.begin;
    t = first + ops::kKeyChunk;
  }
  return keys;
}

}  // namespace

std::int64_t tile_pairs(const HeadPlan& head) {
  std::int64_t keys = 0;
  for (const PartPlan& part : head.parts)
    for (std::int64_t lane = 0; lane < part.lanes(); ++lane) {
      const std::int64_t steps = part.steps(lane);
      for (std::int64_t step = 0; step < steps; step += ops::kTile) {
        const auto rows = static_cast<int>(std::min<std::int64_t>(ops::kTile, steps - step));
        const ops::Tile tile = ops::make_tile(part, lane, step, rows);
        keys += part.masked() ? masked_keys(part, lane, tile) : tile.any.size();
      }
    }
  return keys * ops::kTile;
}

}  // namespace longstride::bench
