#include "ops/attention/walk.h"

#include <gtest/gtest.h>

#include <map>
#include <set>

#include "pattern/random_specs.h"

namespace longstride::ops {

namespace {

using Pairs = std::multiset<std::pair<Position, Position>>;

// The pairs of a task as the kernels meet them: tiles, chunks, runs.
Pairs pairs_of(const PartTask& task, std::int64_t length) {
  Pairs pairs;
  const PartPlan& part = *task.part;
  for (std::int64_t lane = task.span.lane_begin; lane < task.span.lane_end; ++lane) {
    const std::int64_t end = std::min(task.span.step_end, steps_below(part, lane, length));
    for (std::int64_t step = task.span.step_begin; step < end; step += kTile) {
      const Tile tile =
          make_tile(part, lane, step, static_cast<int>(std::min<std::int64_t>(kTile, end - step)));
      for (std::int64_t first = 0; first < tile.any.end; first += kKeyChunk) {
        const Chunk chunk = make_chunk(part, lane, first, {0, part.keys(lane)});
        Mask mask;
        if (!make_mask(part, tile, chunk, mask)) continue;
        for (int r = 0; r < mask.runs; ++r) {
          const Run run = mask.run[static_cast<std::size_t>(r)];
          for (int j = run.begin; j < run.end; ++j)
            for (int q = 0; q < tile.rows; ++q)
              if (!run.masked || mask.active[j][q] != 0)
                pairs.emplace(tile.query[static_cast<std::size_t>(q)],
                              chunk.position[static_cast<std::size_t>(j)]);
        }
      }
    }
  }
  return pairs;
}

// Over all tasks each kept pair is met once; tasks that may run at once share no query, and no
// key where they add gradients.
void expect_exact_tasks(const AttentionPlan& plan, std::int64_t length, bool for_gradients) {
  Pairs met, kept;
  for (const auto& level : part_tasks(plan, 1, length, for_gradients)) {
    std::map<Position, const PartTask*> owner_of_query, owner_of_key;
    for (const PartTask& task : level) {
      const Pairs pairs = pairs_of(task, length);
      for (const auto& [i, j] : pairs) {
        EXPECT_EQ(owner_of_query.emplace(i, &task).first->second, &task) << "query " << i;
        if (for_gradients) {
          EXPECT_EQ(owner_of_key.emplace(j, &task).first->second, &task) << "key " << j;
        }
      }
      met.insert(pairs.begin(), pairs.end());
    }
  }
  for (Position i = 0; i < length; ++i)
    for (Position j = 0; j <= i; ++j)
      if (plan.patterns[0].attends(i, j)) kept.emplace(i, j);
  EXPECT_EQ(met, kept);
}

TEST(Walk, TasksMeetEachPairOnceAndShareNothing) {
  test::Dice dice(21);
  for (int n = 0; n < 60; ++n) {
    const std::int64_t length = dice.in(1, 400);
    const AttentionPlan plan({test::random_head(dice)}, length + dice.in(0, 50));
    SCOPED_TRACE(to_string(plan.patterns[0]) + " of " + std::to_string(length));
    for (const bool for_gradients : {false, true}) expect_exact_tasks(plan, length, for_gradients);
  }
}

TEST(Walk, TasksCoverEachHeadOfTheBatchOnce) {
  const AttentionPlan plan(parse_pattern("local(8), dense").heads(6), 300);
  std::map<std::pair<std::int64_t, std::int64_t>, std::int64_t> queries;
  const auto levels = part_tasks(plan, 2, 290, false);
  for (const PartTask& task : levels[0])
    queries[{task.batch, task.head}] +=
        std::min<std::int64_t>(task.span.step_end, 290) - task.span.step_begin;
  EXPECT_EQ(queries.size(), 12u);
  for (const auto& [head, count] : queries) EXPECT_EQ(count, 290);
}

}  // namespace

}  // namespace longstride::ops
