#include "ops/attention/decode_walk.h"

#include <algorithm>

#include "base/integers.h"

namespace longstride::ops::cuda {

namespace {

// Numbers of a pattern may be far beyond any position.
std::int32_t clamped(std::int64_t x) {
  return static_cast<std::int32_t>(std::min<std::int64_t>(x, kPositionLimit));
}

SlotRule rule(std::int64_t period, std::int64_t end) {
  return {divider(period), 0, clamped(period), clamped(end), 1, 0};
}

}  // namespace

SlotRule slot_rule(const PartPlan& part) {
  const std::int64_t length = part.length();
  if (part.cache_slots() == 0) return {};
  if (const auto* p = std::get_if<Local>(&part.part()))
    return rule(std::min(p->window, length), length);
  if (const auto* p = std::get_if<Row>(&part.part())) return rule(p->stride, length);
  if (const auto* p = std::get_if<PreviousRow>(&part.part()))
    return rule(2 * p->stride, (part.lanes() - 1) * p->stride);
  if (const auto* p = std::get_if<Global>(&part.part()))
    return rule(length, std::min(p->count, length));
  if (const auto* p = std::get_if<Column>(&part.part())) {
    SlotRule column = rule(p->stride, length);
    column.step = static_cast<std::int32_t>(ceil_div(length, p->stride));
    column.rise = 1;
    return column;
  }
  if (const auto* p = std::get_if<Summary>(&part.part())) {
    SlotRule summary = rule(p->stride, (length - 1) / p->stride * p->stride);
    summary.first = static_cast<std::int32_t>(p->stride - p->width * (p->group + 1));
    summary.width = summary.rise = static_cast<std::int32_t>(p->width);
    return summary;
  }
  return rule(length, length);
}

std::int64_t most_keys(const HeadPlan& head) {
  std::int64_t most = 0;
  const std::int64_t length = head.parts.empty() ? 0 : head.parts[0].length();
  for (Position i = 0; i < length; ++i) {
    std::int64_t keys = 0;
    for (const PartPlan& part : head.parts)
      keys += part.reach(part.lane_of(i), part.step_of(i)).size();
    most = std::max(most, keys);
  }
  return most;
}

}  // namespace longstride::ops::cuda
