// The other way round: tiles of keys, and the queries that see them.
//
// Of a pass without summaries, tiles are 128 consecutive positions, part by part. Where a pass has
// a summary, its compact keys come first, tiles of whole summaries as in KeyTiles; then all
// positions again, for what the summary leaves out. The row of the same stride may stand beside a
// summary: of the two together, a summary's key is seen by every query from itself on.
#pragma once

#include <cstdint>

#include "ops/attention/attention_sm90_tiles.cuh"

namespace longstride::ops::cuda::sm90 {

inline constexpr std::int32_t kKeyTile = 128;

// The summary among the parts of a pass, or null.
constexpr const DevicePart* summary_of(const DevicePart* parts, const HeadPass& pass) {
  for (std::int32_t n = pass.first_part; n < pass.first_part + pass.parts; ++n)
    if (parts[n].pass == pass.pass && parts[n].type == PartType::summary) return parts + n;
  return nullptr;
}
// Its keys: nobody sees the last block.
constexpr std::int32_t summary_keys(const DevicePart& summary, std::int32_t length) {
  return summary.fold.quotient(length - 1) * summary.summary_width.by;
}
constexpr std::int32_t tiles_of(std::int32_t keys, std::int32_t in_tile) {
  return (keys + in_tile - 1) / in_tile;
}

// Whether the queries that see a key of the part are what queries_of() says: no cuts by rows of
// earlier parts.
constexpr bool simple_edges(const DevicePart& part) {
  const bool row = part.type == PartType::row, previous = part.type == PartType::previous_row;
  const bool summary = part.type == PartType::summary;
  return part.begin_edges == (row || previous) &&
         part.edges_end == (row || previous) + (previous || summary);
}
// Positions of which the part may see some.
constexpr KeyRange keys_of(const DevicePart& part, std::int32_t length) {
  return {smaller(part.first, length), smaller(part.first_end, length)};
}
// The queries that see position j of a part with simple_edges, j within keys_of(); neither end
// moves backwards with j.
constexpr KeyRange queries_of(const DevicePart& part, std::int32_t j, std::int32_t length) {
  std::int32_t begin = j + part.newest, end = length;
  const std::int32_t stride = part.fold.by;
  if (part.type == PartType::local) {
    end = smaller(length, j + part.window);
  } else if (part.type == PartType::row) {
    end = smaller(length, part.fold.floor(j) + stride);
  } else if (part.type == PartType::previous_row || part.type == PartType::summary) {
    const std::int32_t next = smaller(length, part.fold.floor(j) + stride);
    begin = larger(begin, next);
    if (part.type == PartType::previous_row) end = next + smaller(stride, length - next);
  }
  return {smaller(begin, end), end};
}

// Tiles of a head.
constexpr std::int32_t key_tiles(const DevicePart* parts, const HeadPass& pass,
                                 std::int32_t length) {
  const DevicePart* const summary = summary_of(parts, pass);
  const std::int32_t compact = summary == nullptr
                                   ? 0
                                   : tiles_of(summary_keys(*summary, length),
                                              keys_in_box(summary->summary_width.by, kKeyTile));
  return compact + tiles_of(length, kKeyTile);
}

// One tile of keys of one head, and its ranges of queries.
struct KeySide {
  const DevicePart* parts;
  const DevicePart* summary;  // of the pass, or null
  const DevicePart* end;
  std::int32_t pass, length;
  bool compact;              // keys of the summary
  bool with_row;             // a row stands beside the summary
  std::int32_t begin, keys;  // key indices (compact) or positions

  // False where the head has fewer tiles.
  constexpr bool start(const DevicePart* all_parts, const HeadPass& of, std::int32_t tile,
                       std::int32_t of_length) {
    parts = all_parts + of.first_part;
    end = parts + of.parts;
    pass = of.pass;
    length = of_length;
    summary = summary_of(all_parts, of);
    std::int32_t before = 0;
    compact = with_row = false;
    if (summary != nullptr) {
      const std::int32_t in_box = keys_in_box(summary->summary_width.by, kKeyTile);
      const std::int32_t count = summary_keys(*summary, length);
      before = tiles_of(count, in_box);
      compact = tile < before;
      for (const DevicePart* part = parts; part != end; ++part)
        with_row = with_row || (part->pass == pass && part->type == PartType::row);
      begin = tile * in_box;
      keys = smaller(in_box, count - begin);
      if (compact) return true;
    }
    begin = (tile - before) * kKeyTile;
    keys = smaller(kKeyTile, length - begin);
    return keys > 0;
  }
  // Whether a position belongs to a compact tile, not to one of positions.
  constexpr bool elsewhere(std::int32_t j) const {
    if (summary == nullptr || compact) return false;
    const std::int32_t row = summary->fold.quotient(j);
    const std::int32_t column = j - row * summary->fold.by - summary->summary_first;
    return column >= 0 && column < summary->summary_width.by &&
           row < summary->fold.quotient(length - 1);
  }
  constexpr std::int32_t position(std::int32_t t) const {
    return compact ? key(*summary, 0, t) : t;
  }
  // Keys of the tile that the part has.
  constexpr KeyRange keys_in(const DevicePart& part) const {
    if (compact) return {begin, begin + keys};
    const KeyRange all = keys_of(part, length);
    return {larger(begin, all.begin), smaller(begin + keys, all.end)};
  }
  constexpr KeyRange queries(const DevicePart& part, std::int32_t t) const {
    const std::int32_t j = position(t);
    return compact && with_row ? KeyRange{j, length} : queries_of(part, j, length);
  }
  // Calls f(part) for each part whose pairs belong to this tile.
  template <class F>
  constexpr void each_part(const F& f) const {
    if (compact) return f(*summary);
    for (const DevicePart* part = parts; part != end; ++part)
      if (part->pass == pass && part->type != PartType::summary && !keys_in(*part).empty())
        f(*part);
  }
};

}  // namespace longstride::ops::cuda::sm90
