// Short patterns and their runs, held to the plan.
#include "ops/attention/attention_sm90_short_runs.h"

#include <gtest/gtest.h>

#include <set>
#include <string>
#include <utility>

#include "pattern/plan.h"

namespace longstride::ops::cuda::sm90 {

namespace {

const char* const kShort[] = {"local(1)",   "local(33)",  "local(64)", "local(65)", "local(96)",
                              "local(128)", "local(129)", "row(1)",    "row(16)",   "row(64)",
                              "row(96)",    "row(100)",   "row(128)",  "row(129)",  "row(192)"};

PlanTables tables_of(const std::string& spec, std::int64_t length) {
  return PlanTables({parse_pattern(spec).heads(1), length});
}

TEST(AttentionSm90Short, KnowsWhatIsShort) {
  for (const char* spec : kShort) EXPECT_TRUE(is_short(tables_of(spec, 500).parts[0])) << spec;
  for (const char* spec : {"local(130)", "row(130)", "row(256)", "dense", "previous_row(64)",
                           "column(64)", "global(8)", "random(1, 4, 8)"})
    EXPECT_FALSE(is_short(tables_of(spec, 500).parts[0])) << spec;
  // The rest of a union is cut off where an earlier part has it.
  const PlanTables both = tables_of("row(64) + local(100)", 500);
  EXPECT_FALSE(is_short(both.parts[0]) && is_short(both.parts[1]));
}

TEST(AttentionSm90Short, SeesWhatThePlanSees) {
  constexpr std::int32_t kLength = 700;
  for (const char* spec : kShort) {
    const PlanTables tables = tables_of(spec, kLength);
    const ShortPattern pattern = short_pattern(tables.parts[0]);
    for (std::int32_t i = 0; i < kLength; ++i) {
      const KeyRange seen = reach(tables.parts[0], 0, i);
      ASSERT_EQ(pattern.key_begin(i), seen.begin) << spec << " " << i;
      ASSERT_EQ(i + 1, seen.end);
      for (std::int32_t j = 0; j <= i; ++j)
        ASSERT_EQ(i < pattern.query_end(j), j >= seen.begin) << spec << " " << i << " " << j;
    }
    constexpr std::int32_t kTiles = kLength / kWalkTile;
    for (std::int32_t i = 0; i < kTiles; ++i)
      for (std::int32_t k = 0; k <= i; ++k) {
        bool some = false, all = true;
        for (std::int32_t q = i * kWalkTile; q < (i + 1) * kWalkTile; ++q)
          for (std::int32_t j = k * kWalkTile; j < (k + 1) * kWalkTile; ++j) {
            const bool near = q < pattern.query_end(j);
            some |= near && j <= q, all &= near;
          }
        ASSERT_EQ(pattern.sees(i, k), some) << spec << " " << i << " " << k;
        ASSERT_EQ(pattern.cuts(i, k), !all) << spec << " " << i << " " << k;
        ASSERT_TRUE(!some || i - k < kLive) << spec;
      }
  }
}

// Every pair of tiles that see each other adds to the gradient of its queries in one run and to
// those of its keys in one run.
TEST(AttentionSm90Short, RunsMeetAllTilesOnce) {
  using Pairs = std::multiset<std::pair<std::int32_t, std::int32_t>>;
  for (const char* spec : kShort) {
    const ShortPattern pattern = short_pattern(tables_of(spec, 100).parts[0]);
    for (std::int32_t tiles = 1; tiles < 12; ++tiles)
      for (std::int32_t length = 1; length <= tiles; ++length) {
        Pairs want, of_queries, of_keys;
        for (std::int32_t i = 0; i < tiles; ++i)
          for (std::int32_t k = 0; k <= i; ++k)
            if (pattern.sees(i, k)) want.insert({i, k});
        for (std::int32_t n = 0; n * length < tiles; ++n) {
          const ShortRun run = short_run(pattern, n, tiles, length);
          ASSERT_LE(run.first - run.first_key, kLive - 1);
          ASSERT_LE(run.last - run.end, kLive - 1);
          for (std::int32_t i = run.first; i < run.last; ++i)
            for (std::int32_t k = larger(run.first_key, i - (kLive - 1)); k <= i && k < run.end;
                 ++k) {
              if (!pattern.sees(i, k)) continue;
              if (i < run.end) of_queries.insert({i, k});
              if (k >= run.first) of_keys.insert({i, k});
            }
        }
        ASSERT_EQ(of_queries, want) << spec << " " << tiles << " " << length;
        ASSERT_EQ(of_keys, want) << spec << " " << tiles << " " << length;
      }
  }
}

TEST(AttentionSm90Short, RunsKeepAllMultiprocessorsBusy) {
  EXPECT_EQ(tiles_in_run(32, 192, 132), 48);  // 128 thread blocks
  EXPECT_EQ(tiles_in_run(32, 48, 132), 12);
  EXPECT_EQ(tiles_in_run(1, 1, 132), 1);
  EXPECT_EQ(tiles_in_run(1, 10, 132), 1);
  EXPECT_EQ(tiles_in_run(1000, 10, 132), 10) << "nothing twice where there is enough work";
  for (const std::int64_t sequences : {1, 7, 64, 300})
    for (std::int32_t tiles = 1; tiles < 300; tiles += 13) {
      const std::int32_t length = tiles_in_run(sequences, tiles, 132);
      EXPECT_GE(length, 1);
      EXPECT_LE(length, tiles);
    }
}

}  // namespace

}  // namespace longstride::ops::cuda::sm90
