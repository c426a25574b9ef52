#include "ops/attention/walk.h"

#include <gtest/gtest.h>

#include <map>
#include <set>

#include "pattern/random_specs.h"

namespace longstride::ops {

namespace {

using Pairs = std::multiset<std::pair<Position, Position>>;

// The pairs of a task as the kernels meet them: tiles, chunks, masks.
Pairs pairs_of(const PartTask& task, std::int64_t length) {
  Pairs pairs;
  const PartPlan& part = *task.part;
  for (std::int64_t lane = task.span.lane_begin; lane < task.span.lane_end; ++lane) {
    const std::int64_t end = std::min(task.span.step_end, steps_below(part, lane, length));
    const Interval keys = {part.keys_before(lane, task.keys.begin),
                           part.keys_before(lane, task.keys.end)};
    for (std::int64_t step = task.span.step_begin; step < end; step += kTile) {
      const auto rows = static_cast<int>(std::min<std::int64_t>(kTile, end - step));
      const Tile tile = make_tile(part, lane, step, rows, keys);
      for (std::int64_t first = 0; first < tile.any.end; first += kKeyChunk) {
        const Chunk chunk = make_chunk(part, lane, first, {0, part.keys(lane)});
        Mask mask;
        if (!make_mask(part, tile, chunk, mask)) continue;
        EXPECT_TRUE(mask.begin % 2 == 0 && mask.end % 2 == 0 && mask.end <= kKeyChunk);
        for (int j = mask.begin; j < mask.end; ++j)
          for (int q = 0; q < rows; ++q) {
            const bool kept = mask.keeps(j, q);
            if (j >= mask.free_begin && j < mask.free_end) {
              EXPECT_TRUE(kept);
            }
            if (kept)
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
  std::set<Position> reached, written;
  for (const auto& level :
       for_gradients ? gradient_tasks(plan, 1, length) : forward_tasks(plan, 1, length)) {
    std::map<Position, const PartTask*> owner_of_query, owner_of_key;
    for (const PartTask& task : level) {
      const Pairs pairs = pairs_of(task, length);
      for (const auto& [i, j] : pairs) {
        EXPECT_EQ(owner_of_query.emplace(i, &task).first->second, &task) << "query " << i;
        if (for_gradients) {
          EXPECT_EQ(owner_of_key.emplace(j, &task).first->second, &task) << "key " << j;
          EXPECT_TRUE(!task.first_of_keys || !reached.contains(j)) << "key " << j;
          EXPECT_TRUE(!task.first_of_queries || !written.contains(i)) << "query " << i;
        }
      }
      for (const auto& [i, j] : pairs) met.emplace(i, j);
      if (!for_gradients || !task.first_of_queries) continue;
      for (std::int64_t lane = task.span.lane_begin; lane < task.span.lane_end; ++lane)
        for (std::int64_t s = task.span.step_begin;
             s < std::min(task.span.step_end, steps_below(*task.part, lane, length)); ++s)
          EXPECT_TRUE(written.insert(task.part->query(lane, s)).second) << "query written twice";
    }
    for (const auto& [i, j] : met) reached.insert(j);
  }
  for (Position i = 0; i < length; ++i)
    for (Position j = 0; j <= i; ++j)
      if (plan.patterns[0].attends(i, j)) kept.emplace(i, j);
  EXPECT_EQ(met, kept);
  if (for_gradients) {
    EXPECT_EQ(written.size(), static_cast<std::size_t>(length)) << "queries never written";
  }
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

TEST(Walk, LongLanesAreCutIntoBlocks) {
  for (const char* spec : {"dense", "local(150)", "local(40) + column(2)", "column(3)", "row(500)",
                           "summary(20, 7, 0)", "previous_row(300)", "global(200)",
                           "random(3, 1, 16)", "random(2, 1, 300)", "local(100) + global(300)"}) {
    SCOPED_TRACE(spec);
    const AttentionPlan plan({parse_pattern(spec).heads(1)[0]}, 800);
    for (const std::int64_t length : {800, 711}) expect_exact_tasks(plan, length, true);
  }
}

// Sixteen threads find work in each part.
TEST(Walk, ThereAreEnoughTasks) {
  for (const char* spec : {"dense", "local(128)", "column(128)", "row(128)", "column(4)",
                           "row(4096)", "summary(128, 32, 1)", "random(3, 1, 128)"})
    for (const std::int64_t heads : {4, 8}) {
      const AttentionPlan plan(
          std::vector(static_cast<std::size_t>(heads), parse_pattern(spec).heads(4)[0]), 12288);
      for (const auto& levels : {forward_tasks(plan, 1, 12288), gradient_tasks(plan, 1, 12288)}) {
        std::size_t tasks = 0;
        for (const auto& level : levels) tasks = std::max(tasks, level.size());
        EXPECT_GE(tasks, 64u) << spec;
      }
    }
}

TEST(Walk, TasksCoverEachHeadOfTheBatchOnce) {
  const AttentionPlan plan(parse_pattern("local(8), dense").heads(6), 300);
  std::map<std::pair<std::int64_t, std::int64_t>, std::int64_t> queries;
  const auto levels = forward_tasks(plan, 2, 290);
  for (const PartTask& task : levels[0])
    queries[{task.batch, task.head}] +=
        std::min<std::int64_t>(task.span.step_end, 290) - task.span.step_begin;
  EXPECT_EQ(queries.size(), 12u);
  for (const auto& [head, count] : queries) EXPECT_EQ(count, 290);
}

}  // namespace

}  // namespace longstride::ops
