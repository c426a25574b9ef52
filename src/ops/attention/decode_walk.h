// How decoding on a GPU walks one row: the keys that a new position sees, numbered through the
// parts of its head, and where the cache keeps them. The same on host and device.
//
// A part's slots, which PartPlan::cache_slot computes, are for every kind of part
//   column = j mod period - first
//   kept where 0 <= column < width and j < end       slot = column step + (j / period) rise
#pragma once

#include <cstdint>

#include "ops/attention/device_plan.h"
#include "pattern/plan.h"

namespace longstride::ops::cuda {

inline constexpr int kMaxParts = 16;  // of a union

struct SlotRule {
  Divider period;
  std::int32_t first = 0, width = 1, end = 0;
  std::int32_t step = 1, rise = 0;

  // -1: not kept.
  constexpr std::int32_t slot(std::int32_t j) const {
    const std::int32_t row = period.quotient(j), column = j - row * period.by - first;
    if (column < 0 || column >= width || j >= end) return -1;
    return column * step + row * rise;
  }
};
SlotRule slot_rule(const PartPlan& part);  // of a length below kPositionLimit

// The key indices of one part that query i sees.
constexpr KeyRange seen_keys(const DevicePart& part, std::int32_t i) {
  return part.pass < 0 ? KeyRange{} : reach(part, lane_of(part, i), i);
}

struct FoundKey {
  std::int32_t part = 0;
  std::int32_t position = -1;  // -1: the pair belongs to an earlier part
};

// Number n of the keys that query i sees; seen[p] = seen_keys(parts[p], i), n < the sum of their
// sizes.
constexpr FoundKey find_key(const DevicePart* parts, const KeyRange* seen, std::int32_t i,
                            std::int32_t n) {
  std::int32_t p = 0;
  for (; n >= seen[p].end - seen[p].begin; ++p) n -= seen[p].end - seen[p].begin;
  const std::int32_t j = key(parts[p], lane_of(parts[p], i), seen[p].begin + n);
  return {p, keeps(parts[p], i, j) ? j : -1};
}

// The most keys that one query finds: the largest sum of the sizes of seen_keys.
std::int64_t most_keys(const HeadPlan& head);

}  // namespace longstride::ops::cuda
