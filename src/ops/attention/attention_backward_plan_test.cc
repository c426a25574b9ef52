// What the blocks of attention backward walk, followed on the host.
#include <gtest/gtest.h>

#include <algorithm>
#include <map>

#include "ops/attention/attention_backward_walk.h"
#include "ops/attention/attention_test_util.h"

namespace longstride::ops::cuda {

namespace {

struct HostSearch {
  template <class Holds>
  std::int32_t operator()(std::int32_t count, const Holds& holds) const {
    std::int32_t j = 0;
    while (j < count && !holds(j)) ++j;
    return j;
  }
};

// Follows all launches: which pairs each head meets, who writes what, who waits for whom.
struct Followed {
  Followed(const AttentionPlan& plan, std::int64_t batch, std::int64_t length_,
           const BackwardTiles& tiles, bool without_line)
      : length(length_), tables(plan), heads(tables.heads) {
    const std::size_t at_once = 2;
    const BackwardLaunches launches =
        backward_launches(tables, batch, length, tiles, at_once, without_line);
    const auto count = static_cast<std::size_t>(batch * heads * length);
    pairs.resize(count * static_cast<std::size_t>(length));
    query_written.resize(count), key_written.resize(count);
    for (std::int64_t b = 0; b < batch; ++b)
      for (const std::int32_t h : launches.cleared)
        for (std::int64_t i = 0; i < length; ++i)
          ++query_written[row(b, h, i)], ++key_written[row(b, h, i)];
    if (without_line) write_line(batch);
    for (const BackwardLaunch& launch : launches.list)
      follow(launch, batch, launch.whole ? tiles.whole : tiles.other);
  }

  std::size_t row(std::int64_t b, std::int64_t h, std::int64_t i) const {
    return static_cast<std::size_t>((b * heads + h) * length + i);
  }

  // What other kernels do with the line's heads: all rows, the pairs of its parts.
  void write_line(std::int64_t batch) {
    for (const PassGroup& group : tables.groups)
      for (std::size_t n = 0;
           group.stride == 0 && n < group.heads.size() * static_cast<std::size_t>(batch); ++n) {
        const HeadPass& pass = group.heads[n / static_cast<std::size_t>(batch)];
        const auto b = static_cast<std::int64_t>(n) % batch;
        for (std::int32_t i = 0; i < length; ++i) {
          ++query_written[row(b, pass.head, i)], ++key_written[row(b, pass.head, i)];
          TileWalk walk(tables.parts.data() + pass.first_part, pass.parts, pass.pass, i, i);
          while (walk.next())
            for (std::int32_t t = walk.keys.begin; t < walk.keys.end; ++t) {
              const std::int32_t j = key(*walk.part, walk.lane, t);
              if (keeps(*walk.part, i, j)) ++pair(b, pass.head, i, j);
            }
        }
      }
  }

  int& pair(std::int64_t b, std::int64_t h, std::int64_t i, std::int64_t j) {
    return pairs[row(b, h, i) * static_cast<std::size_t>(length) + static_cast<std::size_t>(j)];
  }

  void follow(const BackwardLaunch& launch, std::int64_t batch, BackwardTile tile) {
    BackwardWalk walk;
    walk.parts = tables.parts.data();
    walk.length = static_cast<std::int32_t>(length), walk.batch = static_cast<std::int32_t>(batch);
    walk.geometry = launch.geometry, walk.tile = tile;
    walk.heads = static_cast<std::int32_t>(launch.heads.size());
    std::copy(launch.heads.begin(), launch.heads.end(), walk.head);
    std::map<std::int32_t, std::int32_t> added, rest;  // of each shared tile
    for (std::uint32_t block = 0; block < launch.blocks(batch); ++block) {
      const KeyTile key = key_tile(walk, block);
      if (key.count < 1) continue;
      ASSERT_LE(key.count, tile.keys);
      if (launch.stores && key.split == 0)
        for (std::int32_t n = 0; n < key.count; ++n)
          ++key_written[row(key.batch, key.head, position_of_key(walk, key, n))];
      QueryTiles tiles(walk, key);
      while (tiles.next(walk, key, HostSearch{})) {
        ASSERT_GT(tiles.count, 0);
        ASSERT_LE(tiles.count, tile.queries);
        const std::int32_t before = tiles.before(walk, key, tiles.seen_by(key, 0)),
                           behind = tiles.behind(walk, key, tiles.seen_by(key, tiles.count - 1));
        if (launch.geometry.exclusive != 0) {
          ASSERT_EQ(before + behind, 0);
        } else {
          ASSERT_LT(tiles.shared, launch.shared_tiles(batch));
          ASSERT_EQ(before, added[tiles.shared]++) << "a block waits for one that does not come";
          if (before > 0) {
            ASSERT_EQ(behind, rest[tiles.shared] - 1);
          }
          rest[tiles.shared] = behind;
        }
        if (behind == 0 && launch.stores)
          for (std::int32_t r = 0; r < tiles.count; ++r)
            ++query_written[row(key.batch, key.head, query(*key.part, tiles.lane, tiles.step + r))];
        meet(walk, key, tiles);
      }
    }
    for (const auto& [number, left] : rest) EXPECT_EQ(left, 0) << "nobody writes tile " << number;
  }

  void meet(const BackwardWalk& walk, const KeyTile& key, const QueryTiles& tiles) {
    for (std::int32_t r = 0; r < tiles.count; ++r) {
      const std::int32_t i = query(*key.part, tiles.lane, tiles.step + r);
      const KeyRange keys = tiles.inside(key, tiles.seen_by(key, r));
      for (std::int32_t n = keys.begin; n < keys.end; ++n) {
        const std::int32_t j = position_of_key(walk, key, n);
        if (keeps(*key.part, i, j)) ++pair(key.batch, key.head, i, j);
      }
    }
  }

  std::int64_t length;
  PlanTables tables;
  std::int64_t heads;
  std::vector<int> pairs, query_written, key_written;
};

void expect_each_pair_once(const AttentionPlan& plan, std::int64_t batch, std::int64_t length,
                           const BackwardTiles& tiles, bool without_line) {
  SCOPED_TRACE(testing::Message() << test::name_of(plan) << ", sequence of " << length << ", tiles "
                                  << tiles.whole.keys << " x " << tiles.whole.queries << " and "
                                  << tiles.other.keys << " x " << tiles.other.queries
                                  << (without_line ? ", without line" : ""));
  Followed walk(plan, batch, length, tiles, without_line);
  for (std::int64_t b = 0; b < batch; ++b)
    for (std::int64_t h = 0; h < walk.heads; ++h) {
      const auto kind = static_cast<std::size_t>(plan.kind_of_head[static_cast<std::size_t>(h)]);
      for (std::int64_t i = 0; i < length; ++i) {
        const std::size_t row = walk.row(b, h, i);
        ASSERT_EQ(walk.query_written[row], 1) << "dq of " << i << " of head " << h;
        ASSERT_EQ(walk.key_written[row], 1) << "dk of " << i << " of head " << h;
        for (std::int64_t j = 0; j < length; ++j)
          ASSERT_EQ(
              walk.pairs[row * static_cast<std::size_t>(length) + static_cast<std::size_t>(j)],
              plan.patterns[kind].attends(i, j))
              << i << ", " << j << " of head " << h;
      }
    }
}

TEST(AttentionBackwardPlan, BlocksMeetEachPairOnceAndWriteEachRowOnce) {
  test::Dice dice(3);
  constexpr BackwardTile kTiles[] = {{128, 64}, {64, 32}, {32, 32}, {16, 16}, {8, 4}};
  for (int n = 0; n < 400; ++n) {
    const std::int64_t length = n % 40 == 0 ? 1 : dice.in(1, 200);
    std::vector<HeadPattern> heads;
    for (std::int64_t h = dice.in(1, 3); h > 0; --h) heads.push_back(test::random_head(dice));
    const AttentionPlan plan(heads, length + (n % 3 == 0 ? dice.in(0, 60) : 0));
    expect_each_pair_once(plan, dice.in(1, 2), length, {kTiles[n / 5 % 5], kTiles[n % 5]},
                          n % 2 == 1);
    if (HasFatalFailure()) return;
  }
}

TEST(AttentionBackwardPlan, WholeLanesAreExclusive) {
  const auto geometry = [](const char* spec, std::int64_t length) {
    const PlanTables tables(test::plan_of(spec, 1, length));
    return backward_geometry(tables.parts[0], length, {128, 64});
  };
  EXPECT_EQ(geometry("column(128)", 12288).exclusive, 1);
  EXPECT_EQ(geometry("column(64)", 12288).exclusive, 0);
  EXPECT_EQ(geometry("row(128)", 12288).key_tiles, 96);
  EXPECT_EQ(geometry("row(128)", 12288).exclusive, 1);
  EXPECT_EQ(geometry("row(50)", 1000).pitch, 100);
  EXPECT_EQ(geometry("local(128)", 12288).exclusive, 0);
  EXPECT_EQ(geometry("global(9)", 12288).exclusive, 1);
}

}  // namespace

}  // namespace longstride::ops::cuda
