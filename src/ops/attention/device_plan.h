// The plan in the form that kernels on a GPU walk: plain data and functions of it, the same on host
// and device, used by forward and backward. Derived from AttentionPlan and held to it by a test.
//
// A pass is what shares one fold of the queries and so one online softmax:
//   line     tiles of consecutive positions; all parts but columns
//   columns  tiles of consecutive steps of one lane, positions lane + step stride; one column part
// A union with columns and something else has several passes; all but the first merge (O, L).
// Within a pass every part has a *key index* t and a query sees one interval of them:
//
//   part                                       lanes      key t
//   dense, local, row, previous_row, global    1          t
//   column(l)                                  min(l, N)  lane + t l
//   summary(l, c, g)                           1          (t/c) l + first + t%c
//   random, blocks of b                        ceil(N/b)  list[t/b] b + t%b
//
// Neither end of the interval moves backwards from query to query of a lane. So what a tile of
// queries sees, and what sees a tile of keys, is an interval too, found from its two ends: kernels
// divide a few times a tile and never a pair, unless a part is `masked`.
// Positions and key indices fit 32 bits: lengths are below kPositionLimit.
#pragma once

#include <cstdint>
#include <vector>

#include "pattern/plan.h"

namespace longstride::ops::cuda {

inline constexpr std::int32_t kPositionLimit = std::int32_t{1} << 30;

// n / by for 0 <= n < 2^31 and 1 <= by <= 2^30, by a multiplication:
// magic = ceil(2^shift / by), shift = 31 + ceil(log2 by), is off by less than 2^-31.
struct Divider {
  std::int32_t by = 1;
  std::uint32_t magic = std::uint32_t{1} << 31;
  std::int32_t shift = 31;
  constexpr std::int32_t quotient(std::int32_t n) const {
    return static_cast<std::int32_t>(
        (static_cast<std::uint64_t>(static_cast<std::uint32_t>(n)) * magic) >> shift);
  }
  constexpr std::int32_t floor(std::int32_t n) const { return quotient(n) * by; }
};
Divider divider(std::int64_t by);  // by above kPositionLimit divides as if it were that

enum class PartType : std::int32_t {
  dense,
  local,
  column,
  row,
  summary,
  previous_row,
  global,
  listed
};

struct KeyRange {
  std::int32_t begin = 0, end = 0;  // empty: begin == end
  constexpr bool empty() const { return begin >= end; }
};

// Position (i / stride - back) stride.
struct RowEdge {
  Divider stride;
  std::int32_t back = 0;
  constexpr std::int32_t at(std::int32_t i) const {
    return (stride.quotient(i) - back) * stride.by;
  }
};

inline constexpr int kMaxEdges = 20;  // a union has at most 16 parts, each gives one, one's own two

struct DevicePart {
  PartType type = PartType::dense;
  std::int32_t number = 0;  // in its union; the parts of a union lie one after the other
  std::int32_t pass = -1;   // of its union; -1: earlier parts have all its pairs
  std::int32_t masked = 0;  // keeps() decides pair by pair
  // The positions that query i sees: first <= j < first_end, i - window < j <= i - newest, j at or
  // behind edges[0 .. begin_edges), before edges[begin_edges .. edges_end).
  std::int32_t first = 0, first_end = kPositionLimit, window = kPositionLimit, newest = 0;
  std::int32_t begin_edges = 0, edges_end = 0;
  RowEdge edges[kMaxEdges];
  Divider fold;                // stride of a column, row, summary or previous row; block of a list
  Divider summary_width;       // summary
  std::int32_t summary_first;  // summary: first column in a block of its stride
  // random, blocks: lane q has the key blocks blocks[offsets[q] .. offsets[q + 1]), ascending; key
  // block k is number seen_slot[n] of lane seen_lane[n], n = seen_offsets[k] .. seen_offsets[k+1].
  std::int32_t lanes = 1;
  const std::int32_t *offsets = nullptr, *blocks = nullptr;
  const std::int32_t *seen_offsets = nullptr, *seen_lane = nullptr, *seen_slot = nullptr;
};

// One pass of one head.
struct HeadPass {
  std::int32_t head = 0;
  std::int32_t first_part = 0, parts = 0;  // of its union
  std::int32_t pass = 0;                   // those of the union's parts that have this pass
  std::int32_t merges = 0;                 // with the (O, L) of an earlier pass
  // The number of the only part, where there is one and its keys lie evenly (neither a summary nor
  // a list); else -1.
  std::int32_t only_part = -1;
};

constexpr std::int32_t smaller(std::int32_t a, std::int32_t b) { return a < b ? a : b; }
constexpr std::int32_t larger(std::int32_t a, std::int32_t b) { return a > b ? a : b; }

// The first of the ascending `values` [begin, end) that is >= x.
constexpr std::int32_t lower_bound(const std::int32_t* values, std::int32_t begin, std::int32_t end,
                                   std::int32_t x) {
#ifdef __CUDA_ARCH__
#pragma unroll 1
#endif
  while (begin < end) {
    const std::int32_t middle = begin + (end - begin) / 2;
    if (values[middle] < x)
      begin = middle + 1;
    else
      end = middle;
  }
  return begin;
}

constexpr std::int32_t lane_of(const DevicePart& part, std::int32_t i) {
  if (part.type == PartType::column) return i - part.fold.floor(i);
  return part.type == PartType::listed ? part.fold.quotient(i) : 0;
}

constexpr std::int32_t query(const DevicePart& part, std::int32_t lane, std::int32_t step) {
  if (part.type == PartType::column) return lane + step * part.fold.by;
  return part.type == PartType::listed ? lane * part.fold.by + step : step;
}

// Queries of the lane at positions < length.
constexpr std::int32_t steps(const DevicePart& part, std::int32_t lane, std::int32_t length) {
  if (part.type == PartType::column)
    return lane >= length ? 0 : part.fold.quotient(length - lane - 1) + 1;
  if (part.type == PartType::listed)
    return larger(0, smaller(part.fold.by, length - lane * part.fold.by));
  return length;
}

constexpr std::int32_t key(const DevicePart& part, std::int32_t lane, std::int32_t t) {
  if (part.type == PartType::column) return lane + t * part.fold.by;
  if (part.type == PartType::summary) {
    const std::int32_t row = part.summary_width.quotient(t);
    return t + row * (part.fold.by - part.summary_width.by) + part.summary_first;
  }
  if (part.type == PartType::listed) {
    const std::int32_t n = part.fold.quotient(t);
    return t + (part.blocks[part.offsets[lane] + n] - n) * part.fold.by;
  }
  return t;
}

// Keys of the lane at positions < x, x >= 0.
constexpr std::int32_t keys_before(const DevicePart& part, std::int32_t lane, std::int32_t x) {
  if (part.type == PartType::column) return x <= lane ? 0 : part.fold.quotient(x - lane - 1) + 1;
  if (part.type == PartType::summary) {
    const std::int32_t row = part.fold.quotient(x), column = x - row * part.fold.by;
    return row * part.summary_width.by +
           larger(0, smaller(part.summary_width.by, column - part.summary_first));
  }
  if (part.type == PartType::listed) {
    const std::int32_t begin = part.offsets[lane], end = part.offsets[lane + 1];
    const std::int32_t block = part.fold.quotient(x);
    const std::int32_t at = lower_bound(part.blocks, begin, end, block);
    const bool inside = at < end && part.blocks[at] == block;
    return (at - begin) * part.fold.by + (inside ? x - block * part.fold.by : 0);
  }
  return x;
}

// The positions that query i sees, but for gaps between the keys and masked pairs.
constexpr KeyRange positions(const DevicePart& part, std::int32_t i) {
  std::int32_t begin = larger(part.first, i + 1 - part.window);
  std::int32_t end = smaller(part.first_end, i + 1 - part.newest);
#ifdef __CUDA_ARCH__  // there are few, and kernels hold many copies of this
#pragma unroll 1
#endif
  for (std::int32_t e = 0; e < part.edges_end; ++e) {
    const std::int32_t at = part.edges[e].at(i);
    if (e < part.begin_edges)
      begin = larger(begin, at);
    else
      end = smaller(end, at);
  }
  return {larger(0, begin), larger(0, end)};
}

// The key indices of the lane that its query i sees.
constexpr KeyRange reach(const DevicePart& part, std::int32_t lane, std::int32_t i) {
  const KeyRange seen = positions(part, i);
  const std::int32_t begin = keys_before(part, lane, seen.begin);
  return {begin, larger(begin, keys_before(part, lane, seen.end))};
}

// Whether the part itself has the pair, j <= i, whatever the rest of its union.
constexpr bool has_pair(const DevicePart& part, std::int32_t i, std::int32_t j) {
  const std::int32_t own = part.fold.quotient(i), row = part.fold.quotient(j);
  switch (part.type) {
    case PartType::dense:
      return true;
    case PartType::local:
      return i - j < part.window;
    case PartType::column:
      return part.fold.floor(i - j) == i - j;
    case PartType::row:
      return own == row;
    case PartType::summary: {
      const std::int32_t column = j - row * part.fold.by - part.summary_first;
      return row < own && column >= 0 && column < part.summary_width.by;
    }
    case PartType::previous_row:
      return row + 1 == own;
    case PartType::global:
      return j < part.first_end;
    case PartType::listed: {
      const std::int32_t end = part.offsets[own + 1];
      const std::int32_t at = lower_bound(part.blocks, part.offsets[own], end, row);
      return at < end && part.blocks[at] == row;
    }
  }
  return false;
}

// For a pair within reach(): whether it is left to this part, j <= i.
constexpr bool keeps(const DevicePart& part, std::int32_t i, std::int32_t j) {
  if (part.masked == 0) return true;
  const DevicePart* const first = &part - part.number;
  for (const DevicePart* earlier = first; earlier != &part; ++earlier)
    if (has_pair(*earlier, i, j)) return false;
  return true;
}

// The keys of a lane that its query i sees; none where i belongs to another lane of a list.
constexpr KeyRange reach_in_lane(const DevicePart& part, std::int32_t lane, std::int32_t i) {
  if (part.type == PartType::listed && lane_of(part, i) != lane) return {};
  return reach(part, lane, i);
}

// key() of one lane with what it needs at hand:
//   position(t) = first + t step + floor(t / group) gap,  of a list: (blocks[t / group] - that) gap
struct KeyMap {
  Divider group;
  std::int32_t first = 0, step = 1, gap = 0;
  const std::int32_t* blocks = nullptr;
  constexpr std::int32_t position(std::int32_t t) const {
    if (gap == 0) return first + t * step;
    const std::int32_t n = group.quotient(t);
    return first + t * step + (blocks == nullptr ? n : blocks[n] - n) * gap;
  }
};

constexpr KeyMap key_map(const DevicePart& part, std::int32_t lane) {
  KeyMap map;
  if (part.type == PartType::column) {
    map.first = lane;
    map.step = part.fold.by;
  } else if (part.type == PartType::summary) {
    map.group = part.summary_width;
    map.first = part.summary_first;
    map.gap = part.fold.by - part.summary_width.by;
  } else if (part.type == PartType::listed) {
    map.group = part.fold;
    map.gap = part.fold.by;
    map.blocks = part.blocks + part.offsets[lane];
  }
  return map;
}

// The first step < count of the lane whose reach has its end (or begin) at or behind t.
constexpr std::int32_t first_step(const DevicePart& part, std::int32_t lane, std::int32_t count,
                                  bool of_end, std::int32_t t) {
  std::int32_t begin = 0, end = count;
  while (begin < end) {
    const std::int32_t middle = begin + (end - begin) / 2;
    const KeyRange seen = reach(part, lane, query(part, lane, middle));
    if ((of_end ? seen.end : seen.begin) < t)
      begin = middle + 1;
    else
      end = middle;
  }
  return begin;
}

// The steps of the lane, at positions < length, that may see one of these keys of the lane.
constexpr KeyRange steps_that_see(const DevicePart& part, std::int32_t lane, KeyRange keys,
                                  std::int32_t length) {
  const std::int32_t count = steps(part, lane, length);
  const std::int32_t begin = first_step(part, lane, count, true, keys.begin + 1);
  return {begin, larger(begin, first_step(part, lane, count, false, keys.end))};
}

// The ranges of keys that the queries first <= i <= last of a tile see: one a part of the pass, of
// a listed part one a lane. Queries are consecutive positions or, in a pass of columns, steps.
struct TileWalk {
  const DevicePart* part = nullptr;  // the current range: part, lane, key indices
  std::int32_t lane = 0;
  KeyRange keys;

  constexpr TileWalk(const DevicePart* union_parts, std::int32_t parts, std::int32_t of_pass,
                     std::int32_t first_query, std::int32_t last_query)
      : next_part(union_parts),
        end_part(union_parts + parts),
        pass(of_pass),
        first(first_query),
        last(last_query) {}

  constexpr bool next() {
    while (advance()) {
      keys = {reach(*part, lane, from).begin, reach(*part, lane, to).end};
      if (!keys.empty()) return true;
    }
    return false;
  }

  // The next part and lane, of which the queries from <= i <= to may see keys: the range runs from
  // the begin of the first one's reach to the end of the last one's.
  std::int32_t from = 0, to = 0;
  constexpr bool advance() {
    if (part != nullptr && part->type == PartType::listed && lane < lane_of(*part, last)) {
      ++lane;
    } else {
      while (next_part != end_part && next_part->pass != pass) ++next_part;
      if (next_part == end_part) return false;
      part = next_part++;
      lane = lane_of(*part, first);
    }
    const bool listed = part->type == PartType::listed;
    from = listed ? larger(first, query(*part, lane, 0)) : first;
    to = listed ? smaller(last, query(*part, lane + 1, 0) - 1) : last;
    return true;
  }

  // The key indices of the current range that query i of the tile sees.
  constexpr KeyRange seen_by(std::int32_t i) const { return reach_in_lane(*part, lane, i); }

 private:
  const DevicePart *next_part, *end_part;
  std::int32_t pass, first, last;
};

// The passes of all heads that have one fold, in one launch.
struct PassGroup {
  std::int32_t stride = 0;  // of the columns; 0: line
  std::vector<HeadPass> heads;
  double keys_per_query = 0;  // mean over heads and queries, about: what decides on tiles
  bool even = false;          // every pass has an only_part
};

// Host memory: what is copied to the device.
struct PlanTables {
  explicit PlanTables(const AttentionPlan& plan);

  // With pointers to lists that were copied to `lists_at`.
  std::vector<DevicePart> parts_at(const std::int32_t* lists_at) const;

  std::int64_t length = 0, heads = 0;
  std::vector<DevicePart> parts;  // of all kinds; pointers are into `lists`
  std::vector<std::int32_t> lists;
  std::vector<PassGroup> groups;  // to be run in this order
};

}  // namespace longstride::ops::cuda
