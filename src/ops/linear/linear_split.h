// How the sum over rows of a weight gradient is split, so that few output tiles keep all
// multiprocessors busy and no float sum runs over very many rows. A function of the shape and the
// card.
#pragma once

#include <algorithm>
#include <cstdint>

namespace longstride::ops::cuda {

struct RowSplit {
  std::int64_t chunk = 0;  // rows of each part but the last
  std::int64_t parts = 1;  // the last may be shorter, never empty
};

struct SplitCosts {
  std::int64_t tile_rows, tile_cols;  // of the output, one multiprocessor at a time
  double bytes_per_row;               // that the card moves while a tile takes one more row
  double element_bytes = 2;           // of the operands, which are read once
  std::int64_t setup_rows = 128;      // a tile's start and end, in rows
  std::int64_t most_rows = std::int64_t{1} << 40;  // of a chunk, for the error of the sum
};

// Minimum over s of  max(waves(s) rows / s, time to read the operands) + waves(s) setup + time to
// write and read s parts, in rows; chunks are multiples of 64 rows; at most `room` floats of parts
// (the shortest chunks, if even these are longer than wanted). One part needs no room.
constexpr RowSplit split_rows(std::int64_t rows, std::int64_t in, std::int64_t out, int processors,
                              std::int64_t room, const SplitCosts& costs) {
  const auto over = [](std::int64_t a, std::int64_t b) { return (a + b - 1) / b; };
  const std::int64_t tiles = over(in, costs.tile_rows) * over(out, costs.tile_cols);
  const std::int64_t size = std::max<std::int64_t>(in * out, 1);
  RowSplit best{std::max<std::int64_t>(rows, 1), 1};
  const double read =
      static_cast<double>(rows * (in + out)) * costs.element_bytes / costs.bytes_per_row;
  double least = 0;
  for (std::int64_t s = 1; s == 1 || (s * size <= room && s <= 512); ++s) {
    const std::int64_t chunk = std::max<std::int64_t>(over(over(rows, s), 64) * 64, 64);
    const std::int64_t parts = std::max<std::int64_t>(over(rows, chunk), 1);
    const double moved = parts == 1 ? 0 : 8.0 * static_cast<double>(parts * size);
    const std::int64_t waves = over(tiles * parts, processors);
    const double cost = std::max(static_cast<double>(waves * chunk), read) +
                        static_cast<double>(waves * costs.setup_rows) + moved / costs.bytes_per_row;
    const bool short_enough = chunk <= std::max<std::int64_t>(costs.most_rows, 64);
    const bool best_short = best.chunk <= std::max<std::int64_t>(costs.most_rows, 64);
    if (s == 1 || !best_short || (cost < least && short_enough)) {
      best = {chunk, parts};
      least = cost;
    }
  }
  return best;
}

}  // namespace longstride::ops::cuda
