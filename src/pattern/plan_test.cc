// The plan against the predicate, pair by pair.
#include "pattern/plan.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <set>

#include "longstride/error.h"
#include "pattern/random_specs.h"
#include "pattern/work.h"

namespace longstride {
namespace {

constexpr int kTrials = 800;

struct Trial {
  HeadPattern head;
  std::int64_t length, block;
  HeadPlan plan;
  std::string name;
  std::vector<signed char> owners;  // [length, length]

  explicit Trial(int number) {
    test::Dice dice(static_cast<std::uint64_t>(number));
    head = test::random_head(dice);
    length = number % 50 == 0 ? 1 : dice.in(1, 200);
    block = dice.in(1, 40);
    plan = AttentionPlan({head}, length).kinds[0];
    name = text("trial ", number, ": ", to_string(head), ", length ", length, ", block ", block);
    for (Position i = 0; i < length; ++i)
      for (Position j = 0; j < length; ++j)
        owners.push_back(static_cast<signed char>(first_part(i, j)));
  }

  // Number of the part that owns the pair, from the predicate alone; -1: nobody.
  int owner(Position i, Position j) const {
    return owners[static_cast<std::size_t>(i * length + j)];
  }

 private:
  int first_part(Position i, Position j) const {
    for (std::size_t p = 0; p < head.parts.size(); ++p)
      if (attends(head.parts[p], i, j)) return static_cast<int>(p);
    return -1;
  }
};

const std::vector<Trial>& trials() {
  static const std::vector<Trial> all = [] {
    std::vector<Trial> made;
    for (int n = 0; n < kTrials; ++n) made.emplace_back(n);
    return made;
  }();
  return all;
}

TEST(Plan, UnionIsTheHead) {
  for (const Trial& trial : trials()) {
    if (trial.length > 60) continue;  // the rest of the tests compare with owner()
    for (Position i = 0; i < trial.length; ++i)
      for (Position j = 0; j < trial.length; ++j)
        ASSERT_EQ(trial.head.attends(i, j), trial.owner(i, j) >= 0) << trial.name;
  }
}

TEST(Plan, FoldsArePermutations) {
  for (const Trial& trial : trials()) {
    SCOPED_TRACE(trial.name);
    for (const PartPlan& part : trial.plan.parts) {
      std::set<Position> seen;
      for (std::int64_t lane = 0; lane < part.lanes(); ++lane) {
        ASSERT_GE(part.steps(lane), 1);
        for (std::int64_t s = 0; s < part.steps(lane); ++s) {
          const Position i = part.query(lane, s);
          ASSERT_EQ(part.lane_of(i), lane);
          ASSERT_EQ(part.step_of(i), s);
          seen.insert(i);
        }
      }
      ASSERT_EQ(static_cast<std::int64_t>(seen.size()), trial.length);
      ASSERT_EQ(*seen.rbegin(), trial.length - 1);
    }
  }
}

TEST(Plan, KeySequencesAscendAndCount) {
  for (const Trial& trial : trials()) {
    SCOPED_TRACE(trial.name);
    for (const PartPlan& part : trial.plan.parts) {
      std::set<Position> keys;
      bool shared = false;
      for (std::int64_t lane = 0; lane < part.lanes(); ++lane) {
        std::int64_t t = 0;
        for (Position x = 0; x <= trial.length; ++x) {
          ASSERT_EQ(part.keys_before(lane, x), t);
          if (t < part.keys(lane) && part.key(lane, t) == x) {
            shared |= !keys.insert(x).second;
            ++t;
          }
        }
        ASSERT_EQ(t, part.keys(lane));
      }
      ASSERT_TRUE(!shared || part.lanes_share_keys());
    }
  }
}

TEST(Plan, IntervalsHoldExactlyThePairs) {
  int masked = 0;
  for (const Trial& trial : trials()) {
    SCOPED_TRACE(trial.name);
    for (std::size_t p = 0; p < trial.plan.parts.size(); ++p) {
      const PartPlan& part = trial.plan.parts[p];
      masked += part.masked();
      for (std::int64_t lane = 0; lane < part.lanes(); ++lane) {
        Interval before;
        for (std::int64_t s = 0; s < part.steps(lane); ++s) {
          const Position i = part.query(lane, s);
          const Interval seen = part.reach(lane, s);
          ASSERT_GE(seen.begin, before.begin);
          ASSERT_GE(seen.end, before.end);
          ASSERT_LE(seen.begin, seen.end);
          ASSERT_LE(seen.end, part.keys(lane));
          before = seen;
          std::set<Position> got;
          for (std::int64_t t = seen.begin; t < seen.end; ++t) {
            const Position j = part.key(lane, t);
            if (!part.masked() || part.keeps(i, j)) got.insert(j);
          }
          for (Position j = 0; j < trial.length; ++j) {
            const bool mine = trial.owner(i, j) == static_cast<int>(p);
            ASSERT_EQ(got.count(j) == 1, mine) << "part " << p << ", i " << i << ", j " << j;
            ASSERT_EQ(part.keeps(i, j), mine);
          }
        }
      }
    }
  }
  EXPECT_GT(masked, 50);
}

TEST(Plan, CountsEqualBruteForce) {
  for (const Trial& trial : trials()) {
    SCOPED_TRACE(trial.name);
    std::int64_t pairs = 0, blocks = 0, read = 0;
    for (Position i = 0; i < trial.length; ++i) {
      std::int64_t row = 0;
      for (Position j = 0; j < trial.length; ++j) row += trial.owner(i, j) >= 0;
      pairs += row;
      read = std::max(read, row);
    }
    for (std::size_t p = 0; p < trial.plan.parts.size(); ++p) {
      const PartPlan& part = trial.plan.parts[p];
      for (std::int64_t lane = 0; lane < part.lanes(); ++lane) {
        std::set<std::pair<std::int64_t, std::int64_t>> tiles;
        for (std::int64_t s = 0; s < part.steps(lane); ++s)
          for (std::int64_t t = 0; t < part.keys(lane); ++t)
            if (trial.owner(part.query(lane, s), part.key(lane, t)) == static_cast<int>(p))
              tiles.insert({s / trial.block, t / trial.block});
        blocks += static_cast<std::int64_t>(tiles.size());
      }
    }
    const HeadWork work = count_work(trial.plan, trial.length, trial.block);
    ASSERT_EQ(work.pairs, pairs);
    ASSERT_EQ(work.blocks, blocks);
    ASSERT_EQ(work.read_keys, read);
  }
}

// A sampler that stores position i, then reads all that i sees, always finds it in place.
TEST(Plan, CacheHoldsWhatIsReadAgain) {
  for (const Trial& trial : trials()) {
    SCOPED_TRACE(trial.name);
    std::int64_t in_use = 0;
    for (std::size_t p = 0; p < trial.plan.parts.size(); ++p) {
      const PartPlan& part = trial.plan.parts[p];
      std::vector<Position> cache(static_cast<std::size_t>(part.cache_slots()), -1);
      for (Position i = 0; i < trial.length; ++i) {
        const std::int64_t own = part.cache_slot(i);
        ASSERT_GE(own, -1);
        ASSERT_LT(own, part.cache_slots());
        if (own >= 0) cache[static_cast<std::size_t>(own)] = i;
        for (Position j = 0; j <= i; ++j) {
          if (trial.owner(i, j) != static_cast<int>(p)) continue;
          ASSERT_GE(part.cache_slot(j), 0) << "j " << j;
          ASSERT_EQ(cache[static_cast<std::size_t>(part.cache_slot(j))], j) << "i " << i;
        }
      }
      in_use += std::count_if(cache.begin(), cache.end(), [](Position j) { return j >= 0; });
    }
    ASSERT_EQ(count_work(trial.plan, trial.length, 32).cache_keys, in_use);
  }
}

std::vector<bool> masked_parts(std::string_view spec, std::int64_t length) {
  const AttentionPlan plan(parse_pattern(spec).heads(1), length);
  std::vector<bool> out;
  for (const PartPlan& part : plan.kinds[0].parts) out.push_back(part.masked());
  return out;
}

TEST(Plan, UsualUnionsNeedNoMask) {
  for (const char* spec :
       {"strided(8)", "fixed(8, 2)", "summary(8, 2) + row(8)", "column(8) + local(8)",
        "row(8) + previous_row(8) + global(3)", "previous_row(8) + row(8)",
        "previous_row(8) + summary(8, 3)", "row(8) + previous_row(8) + summary(8, 2)",
        "previous_row(8) + local(9)", "global(4) + local(16) + random(2, 7, 4)",
        "summary(8, 2, 0) + summary(8, 2, 1) + row(8)", "column(96) + column(98)",
        "dense + random(1, 1)", "summary(8, 8) + local(30)"}) {
    const std::vector<bool> masked = masked_parts(spec, 200);
    EXPECT_EQ(std::count(masked.begin(), masked.end(), true), 0) << spec;
  }
  EXPECT_EQ(masked_parts("column(8) + local(9)", 200), (std::vector<bool>{false, true}));
  EXPECT_EQ(masked_parts("column(8) + column(12)", 200), (std::vector<bool>{false, true}));
}

TEST(Plan, CutsShortenTheIntervals) {
  const PartPlan column = AttentionPlan(parse_pattern("strided(8)").heads(1), 64).kinds[0].parts[1];
  EXPECT_EQ(column.reach(3, 5).end, 5);  // one step back
  EXPECT_EQ(column.reach(3, 0).size(), 0);
  const PartPlan after =
      AttentionPlan(parse_pattern("global(5) + local(8)").heads(1), 64).kinds[0].parts[1];
  EXPECT_EQ(after.reach(0, 4).size(), 0);
  EXPECT_EQ(after.reach(0, 6).begin, 5);
}

// Nobody reads the summary of the last row, or the last row as a previous one.
TEST(Plan, CacheKeepsNothingInVain) {
  for (const std::int64_t length : {17, 20, 24}) {
    const PartPlan summary({{Summary{8, 2, 0}}, 1}, 0, length);
    EXPECT_EQ(summary.keys(0), 4);
    EXPECT_EQ(summary.cache_slots(), 4);
    EXPECT_EQ(summary.cache_slot(7), 1);
    EXPECT_EQ(summary.cache_slot(8), -1);
    EXPECT_EQ(PartPlan({{PreviousRow{8}}, 1}, 0, length).cache_slot(16), -1);
  }
  EXPECT_EQ(PartPlan({{PreviousRow{8}}, 1}, 0, 8).cache_slots(), 0);
  EXPECT_EQ(PartPlan({{Local{100}}, 1}, 0, 8).cache_slots(), 8);
  EXPECT_EQ(PartPlan({{Dense{}, Local{3}}, 1}, 1, 8).cache_slots(), 0);
}

TEST(Plan, EqualHeadsShareAKind) {
  const AttentionPlan plan(parse_pattern("fixed(8, 2)").heads(8), 64);
  EXPECT_EQ(plan.kinds.size(), 4u);
  EXPECT_EQ(plan.kind_of_head, (std::vector<std::int64_t>{0, 1, 2, 3, 0, 1, 2, 3}));
  EXPECT_EQ(plan.patterns[3].parts[1], Part(Summary{8, 2, 3}));
}

TEST(Plan, RefusesWhatIsNotFit) {
  const HeadPattern no_group{parse_pattern("summary(8, 2)").kinds[0]};
  EXPECT_THROW(PartPlan(no_group, 0, 64), Error);
  EXPECT_THROW(PartPlan({{Local{0}}, 1}, 0, 64), Error);
  EXPECT_THROW(PartPlan({{Blocks{}}, 1}, 0, 64), Error);
  EXPECT_THROW(PartPlan({{Dense{}}, 1}, 0, 0), Error);
  EXPECT_THROW(PartPlan({{Random{1 << 20, 1, 1}}, 1}, 0, 1 << 20), Error);
}

}  // namespace
}  // namespace longstride
