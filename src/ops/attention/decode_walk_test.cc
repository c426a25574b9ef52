#include "ops/attention/decode_walk.h"

#include <gtest/gtest.h>

#include <algorithm>

#include "ops/attention/attention_test_util.h"

namespace longstride::ops::cuda {

namespace {

TEST(SlotRule, IsTheSlotOfThePlanForEveryPosition) {
  test::Dice dice(21);
  for (int trial = 0; trial < 2000; ++trial) {
    const HeadPattern head = test::random_head(dice);
    const std::int64_t length = dice.in(1, 300);
    for (std::size_t p = 0; p < head.parts.size(); ++p) {
      const PartPlan part(head, p, length);
      const SlotRule rule = slot_rule(part);
      for (std::int32_t j = 0; j < length; ++j)
        ASSERT_EQ(rule.slot(j), part.cache_slot(j))
            << to_string(head.parts[p]) << " " << j << " of " << length;
    }
  }
}

// Each position finds the positions that it attends to, each once, in the slots of a cache that was
// filled position by position.
TEST(DecodeWalk, FindsWhatThePatternAttendsToInTheCache) {
  test::Dice dice(22);
  for (int trial = 0; trial < 400; ++trial) {
    const HeadPattern head = test::random_head(dice);
    const AttentionPlan plan({head}, dice.in(1, 200));
    const PlanTables tables(plan);
    const auto& parts = plan.kinds[0].parts;
    std::vector<std::vector<Position>> cache;
    for (const PartPlan& part : parts)
      cache.emplace_back(static_cast<std::size_t>(part.cache_slots()), -1);
    std::int64_t most = 0;
    for (std::int32_t i = 0; i < plan.length; ++i) {
      KeyRange seen[kMaxParts];
      std::int32_t count = 0;
      for (std::size_t p = 0; p < parts.size(); ++p) {
        const std::int32_t slot = slot_rule(parts[p]).slot(i);
        if (slot >= 0) cache[p][static_cast<std::size_t>(slot)] = i;
        seen[p] = seen_keys(tables.parts[p], i);
        count += seen[p].end - seen[p].begin;
      }
      most = std::max<std::int64_t>(most, count);
      std::vector<Position> found, want;
      for (std::int32_t n = 0; n < count; ++n) {
        const FoundKey key = find_key(tables.parts.data(), seen, i, n);
        if (key.position < 0) continue;
        found.push_back(key.position);
        const auto part = static_cast<std::size_t>(key.part);
        const std::int32_t slot = slot_rule(parts[part]).slot(key.position);
        ASSERT_GE(slot, 0);
        ASSERT_EQ(cache[part][static_cast<std::size_t>(slot)], key.position)
            << to_string(head) << " of " << plan.length << ", position " << i;
      }
      std::sort(found.begin(), found.end());
      for (Position j = 0; j <= i; ++j)
        if (head.attends(i, j)) want.push_back(j);
      ASSERT_EQ(found, want) << to_string(head) << " of " << plan.length << ", position " << i;
    }
    EXPECT_EQ(most_keys(plan.kinds[0]), most) << to_string(head) << " of " << plan.length;
  }
}

}  // namespace

}  // namespace longstride::ops::cuda
