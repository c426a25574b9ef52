// The tiles that the Hopper kernels walk, on the host: every pair of a pattern lies in exactly one
// tile of keys for its query, and is found once from the side of its key.
#include <gtest/gtest.h>

#include <map>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "ops/attention/attention_sm90_key_tiles.cuh"
#include "pattern/plan.h"

namespace longstride::ops::cuda::sm90 {

namespace {

const char* const kSpecs[] = {
    "dense",
    "local(1)",
    "local(20)",
    "local(300)",
    "row(24)",
    "row(128)",
    "summary(12, 5, 1)",
    "summary(128, 32, 0)",
    "fixed(16, 4)",
    "fixed(96, 24)",
    "fixed(200, 128)",
    "previous_row(16)",
    "global(9)",
    "global(150)",
    "local(10) + global(5)",
    "fixed(48, 48)",
    "fixed(300, 256)",
};

PlanTables tables_of(const std::string& spec, std::int64_t length) {
  return PlanTables({parse_pattern(spec).heads(1), length});
}

template <int kTile>
void expect_tiles_cover(const std::string& spec, std::int32_t length, std::int32_t rows) {
  SCOPED_TRACE(spec);
  const HeadPattern head = parse_pattern(spec).heads(1)[0];
  const PlanTables tables = tables_of(spec, length);
  ASSERT_EQ(tables.groups.size(), 1u);
  const HeadPass& pass = tables.groups[0].heads[0];
  for (std::int32_t first = 0; first < length; first += rows) {
    const std::int32_t end = smaller(first + rows, length);
    std::map<std::int32_t, std::set<std::int32_t>> seen;  // of each query
    KeyTiles<kTile> tiles(tables.parts.data(), pass, first, end - 1);
    bool new_part = false;
    while (tiles.next(new_part)) {
      const DevicePart& part = *tiles.walk.part;
      ASSERT_LE(tiles.keys, kTile);
      for (std::int32_t i = first; i < end; ++i) {
        const KeyRange mine = reach(part, 0, i);
        for (std::int32_t t = larger(mine.begin, tiles.begin);
             t < smaller(mine.end, tiles.begin + tiles.keys); ++t) {
          // Where the tensor map has it: the box is contiguous in (column, block).
          const std::int32_t width = smaller(tiles.width(), kTile);
          const std::int32_t row = t - tiles.begin;
          const std::int32_t block = tiles.block() + row / width;
          const std::int32_t column = tiles.column() + row % width;
          const std::int32_t j =
              tiles.is_summary() ? block * part.fold.by + column : column + row / width * width;
          EXPECT_EQ(j, key(part, 0, t));
          EXPECT_TRUE(seen[i].insert(j).second) << "twice: " << i << ", " << j;
        }
      }
    }
    for (std::int32_t i = first; i < end; ++i)
      for (std::int32_t j = 0; j <= i; ++j)
        ASSERT_EQ(seen[i].count(j) != 0, head.attends(i, j)) << i << ", " << j;
  }
}

void expect_turned(const std::string& spec, std::int32_t length) {
  SCOPED_TRACE(spec);
  const HeadPattern head = parse_pattern(spec).heads(1)[0];
  const PlanTables tables = tables_of(spec, length);
  const HeadPass& pass = tables.groups[0].heads[0];
  std::vector<int> owners(static_cast<std::size_t>(length));
  std::set<std::pair<std::int32_t, std::int32_t>> pairs;  // query, key
  const std::int32_t count = key_tiles(tables.parts.data(), pass, length);
  for (std::int32_t tile = 0; tile < count; ++tile) {
    KeySide side;
    ASSERT_TRUE(side.start(tables.parts.data(), pass, tile, length));
    ASSERT_LE(side.keys, kKeyTile);
    for (std::int32_t t = side.begin; t < side.begin + side.keys; ++t) {
      const std::int32_t j = side.position(t);
      if (side.elsewhere(j)) continue;
      ++owners[static_cast<std::size_t>(j)];
      side.each_part([&](const DevicePart& part) {
        const KeyRange has = side.keys_in(part);
        if (t < has.begin || t >= has.end) return;
        const KeyRange seen = side.queries(part, t);
        for (std::int32_t i = seen.begin; i < seen.end; ++i)
          EXPECT_TRUE(pairs.emplace(i, j).second) << "twice: " << i << ", " << j;
        if (t > has.begin) {
          EXPECT_LE(side.queries(part, t - 1).begin, seen.begin);
          EXPECT_LE(side.queries(part, t - 1).end, seen.end);
        }
      });
    }
  }
  KeySide behind;
  EXPECT_FALSE(behind.start(tables.parts.data(), pass, count, length));
  for (std::int32_t i = 0; i < length; ++i) {
    EXPECT_EQ(owners[static_cast<std::size_t>(i)], 1) << "key " << i;
    for (std::int32_t j = 0; j < length; ++j)
      ASSERT_EQ(pairs.count({i, j}) != 0, head.attends(i, j)) << i << ", " << j;
  }
}

TEST(AttentionSm90Tiles, KeysOfATileOfQueriesAreThoseOfThePattern) {
  for (const char* spec : kSpecs) {
    expect_tiles_cover<128>(spec, 517, 192);
    expect_tiles_cover<128>(spec, 128, 128);
  }
  for (const char* spec : {"dense", "fixed(16, 4)", "fixed(200, 128)", "local(70)"})
    expect_tiles_cover<64>(spec, 401, 128);
}

TEST(AttentionSm90Tiles, QueriesOfATileOfKeysAreThoseOfThePattern) {
  for (const char* spec : kSpecs)
    for (const std::int32_t length : {1, 127, 401}) expect_turned(spec, length);
}

TEST(AttentionSm90Tiles, EveryWorkHasOneTurn) {
  for (const Order order : {Order{7, 5, 2}, Order{3, 40, 40}, Order{1, 1, 1}, Order{64, 9, 4}}) {
    std::set<std::pair<std::int32_t, std::int32_t>> works;
    constexpr std::int32_t kBlocks = 13;
    for (std::int32_t block = 0; block < kBlocks; ++block)
      for (std::int32_t round = 0; round * kBlocks < order.size(); ++round) {
        const std::int32_t index = order.index(round, block, kBlocks);
        if (index >= order.size()) continue;
        const Order::Work work = order.at(index);
        EXPECT_TRUE(work.tile >= 0 && work.tile < order.tiles);
        EXPECT_TRUE(work.head >= 0 && work.head < order.heads);
        EXPECT_TRUE(works.emplace(work.tile, work.head).second);
      }
    EXPECT_EQ(static_cast<std::int32_t>(works.size()), order.size());
  }
}

}  // namespace

}  // namespace longstride::ops::cuda::sm90
