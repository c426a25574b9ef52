// The plan that kernels on a GPU walk, against the predicate and against PartPlan.
#include "ops/attention/device_plan.h"

#include <gtest/gtest.h>

#include <algorithm>

#include "longstride/error.h"
#include "ops/attention/attention_test_util.h"

namespace longstride::ops::cuda {
namespace {

constexpr int kTrials = 400;

struct Trial {
  std::string name;
  AttentionPlan plan;
  PlanTables tables;
  std::int64_t length;  // of the sequence, at most the plan's

  Trial(std::vector<HeadPattern> heads, std::int64_t plan_length, std::int64_t length_)
      : plan(heads, plan_length), tables(plan), length(length_) {
    name = test::name_of(plan) + ", sequence of " + std::to_string(length);
  }
};

template <class Check>
void for_each_trial(const Check& check) {
  test::Dice dice(11);
  for (int n = 0; n < kTrials; ++n) {
    const std::int64_t length = n % 40 == 0 ? 1 : dice.in(1, 160);
    std::vector<HeadPattern> heads = {test::random_head(dice)};
    if (n % 3 == 0) heads.push_back(test::random_head(dice));
    const Trial trial(heads, length + (n % 4 == 0 ? dice.in(0, 60) : 0), length);
    SCOPED_TRACE(trial.name);
    check(trial, dice);
    if (testing::Test::HasFatalFailure()) return;
  }
}

// Calls visit(group, pass, first, last, stride) for each tile of at most `rows` queries.
template <class Visit>
void for_each_tile(const Trial& trial, std::int32_t rows, const Visit& visit) {
  const auto length = static_cast<std::int32_t>(trial.length);
  for (const PassGroup& group : trial.tables.groups)
    for (const HeadPass& pass : group.heads) {
      const std::int32_t stride = std::max(1, group.stride);
      const std::int32_t lanes = group.stride == 0 ? 1 : std::min(stride, length);
      for (std::int32_t lane = 0; lane < lanes; ++lane) {
        const std::int32_t steps = (length - lane + stride - 1) / stride;
        for (std::int32_t step = 0; step < steps; step += rows)
          visit(pass, lane + step * stride, lane + (std::min(steps, step + rows) - 1) * stride,
                stride);
      }
    }
}

TEST(DevicePlan, DividesAsIntegersDo) {
  constexpr std::int64_t kLargest = (std::int64_t{1} << 31) - 1;
  for (const std::int64_t by :
       {std::int64_t{1}, std::int64_t{2}, std::int64_t{3}, std::int64_t{7}, std::int64_t{96},
        std::int64_t{128}, std::int64_t{641}, std::int64_t{65535}, std::int64_t{65537},
        std::int64_t{123456789}, std::int64_t{536870913}, std::int64_t{kPositionLimit}})
    for (const std::int64_t near :
         {std::int64_t{0}, by, 2 * by, 1000 * by, kLargest / by * by, kLargest})
      for (std::int64_t n = near - 2; n <= near + 2; ++n)
        if (n >= 0 && n <= kLargest) {
          ASSERT_EQ(divider(by).quotient(static_cast<std::int32_t>(n)), n / by) << n << " / " << by;
        }
}

// Each pair of the predicate is met by exactly one pass, once; no other pair is.
TEST(DevicePlan, TilesMeetEachPairOnce) {
  for_each_trial([](const Trial& trial, test::Dice& dice) {
    const auto length = static_cast<std::size_t>(trial.length);
    std::vector<int> met(trial.plan.kind_of_head.size() * length * length);
    for_each_tile(
        trial, static_cast<std::int32_t>(dice.in(1, 40)),
        [&](const HeadPass& pass, std::int32_t first, std::int32_t last, std::int32_t stride) {
          TileWalk walk(trial.tables.parts.data() + pass.first_part, pass.parts, pass.pass, first,
                        last);
          while (walk.next())
            for (std::int32_t i = first; i <= last; i += stride) {
              const KeyRange seen = walk.seen_by(i);
              ASSERT_TRUE(seen.empty() ||
                          (walk.keys.begin <= seen.begin && seen.end <= walk.keys.end));
              for (std::int32_t t = seen.begin; t < seen.end; ++t) {
                const std::int32_t j = key(*walk.part, walk.lane, t);
                ASSERT_TRUE(j >= 0 && j <= i);
                ASSERT_EQ(key_map(*walk.part, walk.lane).position(t), j);
                if (keeps(*walk.part, i, j))
                  ++met[(static_cast<std::size_t>(pass.head) * length +
                         static_cast<std::size_t>(i)) *
                            length +
                        static_cast<std::size_t>(j)];
              }
            }
        });
    std::size_t n = 0;
    for (const std::int64_t kind : trial.plan.kind_of_head)
      for (Position i = 0; i < trial.length; ++i)
        for (Position j = 0; j < trial.length; ++j)
          ASSERT_EQ(met[n++],
                    trial.plan.patterns[static_cast<std::size_t>(kind)].attends(i, j) ? 1 : 0)
              << i << ", " << j;
  });
}

TEST(DevicePlan, PartsSeeWhatTheirPlanSays) {
  for_each_trial([](const Trial& trial, test::Dice&) {
    std::size_t n = 0;
    for (const HeadPlan& kind : trial.plan.kinds)
      for (const PartPlan& want : kind.parts) {
        const DevicePart& got = trial.tables.parts[n++];
        ASSERT_EQ(got.pass < 0, want.cuts().everything);
        if (got.pass < 0) continue;
        for (Position i = 0; i < trial.plan.length; ++i) {
          const auto at = static_cast<std::int32_t>(i);
          const Interval seen = want.reach(want.lane_of(i), want.step_of(i));
          const std::int32_t lane = lane_of(got, at);
          const KeyRange mine = reach(got, lane, at);
          ASSERT_EQ(mine.end - mine.begin, seen.size());
          for (std::int64_t t = 0; t < seen.size(); ++t)
            ASSERT_EQ(key(got, lane, mine.begin + static_cast<std::int32_t>(t)),
                      want.key(want.lane_of(i), seen.begin + t));
        }
      }
  });
}

// Backward: a tile of keys finds all queries that see it, and only the two ends may be loose.
TEST(DevicePlan, KeysFindTheStepsThatSeeThem) {
  for_each_trial([](const Trial& trial, test::Dice& dice) {
    const auto length = static_cast<std::int32_t>(trial.length);
    for (const DevicePart& part : trial.tables.parts) {
      if (part.pass < 0) continue;
      const std::int32_t lanes =
          part.type == PartType::column ? std::min(part.fold.by, length) : part.lanes;
      for (std::int32_t lane = 0; lane < lanes; ++lane) {
        const std::int32_t count = steps(part, lane, length);
        const auto width = static_cast<std::int32_t>(dice.in(1, 30));
        for (std::int32_t t = 0; t < length; t += width) {
          const KeyRange keys{t, t + width};
          const KeyRange found = steps_that_see(part, lane, keys, length);
          for (std::int32_t s = 0; s < count; ++s) {
            const KeyRange seen = reach(part, lane, query(part, lane, s));
            const bool sees = std::max(seen.begin, t) < std::min(seen.end, t + width);
            ASSERT_TRUE(!sees || (found.begin <= s && s < found.end)) << lane << ", " << s;
            if (s == found.begin && !found.empty()) {
              ASSERT_GT(seen.end, t);
            }
            if (s == found.end - 1 && !found.empty()) {
              ASSERT_LT(seen.begin, t + width);
            }
          }
        }
      }
    }
  });
}

TEST(DevicePlan, ListsAreReversed) {
  for_each_trial([](const Trial& trial, test::Dice&) {
    for (const DevicePart& part : trial.tables.parts) {
      if (part.type != PartType::listed) continue;
      std::vector<int> met(static_cast<std::size_t>(part.offsets[part.lanes]));
      for (std::int32_t k = 0; k < part.lanes; ++k)
        for (std::int32_t n = part.seen_offsets[k]; n < part.seen_offsets[k + 1]; ++n) {
          const std::int32_t at = part.offsets[part.seen_lane[n]] + part.seen_slot[n];
          ASSERT_LT(at, part.offsets[part.seen_lane[n] + 1]);
          ASSERT_EQ(part.blocks[at], k);
          ++met[static_cast<std::size_t>(at)];
        }
      ASSERT_TRUE(std::all_of(met.begin(), met.end(), [](int m) { return m == 1; }));
    }
  });
}

TEST(DevicePlan, ListsMoveWithTheirMemory) {
  const PlanTables tables(test::plan_of("local(3), local(5) + random(2, 7, 8)", 2, 100));
  const std::vector<std::int32_t> copy = tables.lists;
  const std::vector<DevicePart> moved = tables.parts_at(copy.data());
  for (std::size_t p = 0; p < moved.size(); ++p) {
    if (moved[p].type != PartType::listed) continue;
    EXPECT_EQ(moved[p].seen_slot - copy.data(), tables.parts[p].seen_slot - tables.lists.data());
    EXPECT_GE(moved[p].offsets, copy.data());
    EXPECT_LT(moved[p].offsets, copy.data() + copy.size());
  }
}

TEST(DevicePlan, PassesAreColumnsFirstThenTheLine) {
  const PlanTables tables(test::plan_of("strided(12), column(9), dense", 6, 100));
  ASSERT_EQ(tables.groups.size(), 3u);
  EXPECT_EQ(tables.groups[0].stride, 9);
  EXPECT_EQ(tables.groups[1].stride, 12);
  EXPECT_EQ(tables.groups[2].stride, 0);
  EXPECT_EQ(tables.groups[2].heads.size(), 4u);
  EXPECT_EQ(tables.groups[2].heads[0].merges, 1);
  EXPECT_EQ(tables.groups[2].heads[3].merges, 0);
  EXPECT_TRUE(tables.groups[0].even);
  EXPECT_TRUE(tables.groups[2].even);
  const HeadPass& local = tables.groups[2].heads[0];
  EXPECT_EQ(local.only_part, local.first_part);  // strided(12) is local(12) + column(12)
}

TEST(DevicePlan, KnowsPassesOfOneEvenPart) {
  const auto even = [](const char* spec) {
    return PlanTables(test::plan_of(spec, 1, 100)).groups.back().even;
  };
  for (const char* spec :
       {"dense", "row(9)", "column(7)", "previous_row(8)", "column(7) + global(3)"})
    EXPECT_TRUE(even(spec)) << spec;
  for (const char* spec : {"row(9) + global(3)", "summary(8, 2, 0)", "random(2, 1, 8)"})
    EXPECT_FALSE(even(spec)) << spec;
}

TEST(DevicePlan, TakesNumbersFarBeyondTheSequence) {
  const Trial trial({test::head_of("local(1000000000000)"), test::head_of("row(900000000000)"),
                     test::head_of("column(800000000000) + global(500000000000)"),
                     test::head_of("summary(700000000000, 600000000000)"),
                     test::head_of("previous_row(800000000000) + local(7)")},
                    50, 50);
  std::vector<int> keys(5);
  for_each_tile(
      trial, 16,
      [&](const HeadPass& pass, std::int32_t first, std::int32_t last, std::int32_t stride) {
        TileWalk walk(trial.tables.parts.data() + pass.first_part, pass.parts, pass.pass, first,
                      last);
        while (walk.next())
          for (std::int32_t i = first; i <= last; i += stride)
            keys[static_cast<std::size_t>(pass.head)] +=
                walk.seen_by(i).end - walk.seen_by(i).begin;
      });
  EXPECT_EQ(keys, (std::vector<int>{1275, 1275, 1275, 0, 329}));
}

TEST(DevicePlan, RefusesLengthsThatDoNotFit) {
  EXPECT_THROW(PlanTables(test::plan_of("dense", 1, kPositionLimit)), Error);
}

}  // namespace
}  // namespace longstride::ops::cuda
