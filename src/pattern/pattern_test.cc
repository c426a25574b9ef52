// The predicate on examples that can be checked by hand, and the heads of a layer.
#include "longstride/pattern.h"

#include <gtest/gtest.h>

#include <set>

#include "longstride/error.h"

namespace longstride {
namespace {

std::vector<Position> seen(const HeadPattern& head, Position i) {
  std::vector<Position> out;
  for (Position j = 0; j < 2 * i + 8; ++j)
    if (head.attends(i, j)) out.push_back(j);
  return out;
}

std::vector<Position> seen(std::string_view spec, Position i) {
  return seen(parse_pattern(spec).heads(1)[0], i);
}

using Positions = std::vector<Position>;

TEST(Pattern, EachPart) {
  EXPECT_EQ(seen("dense", 3), (Positions{0, 1, 2, 3}));
  EXPECT_EQ(seen("local(3)", 9), (Positions{7, 8, 9}));
  EXPECT_EQ(seen("local(3)", 1), (Positions{0, 1}));
  EXPECT_EQ(seen("column(4)", 9), (Positions{1, 5, 9}));
  EXPECT_EQ(seen("row(4)", 9), (Positions{8, 9}));
  EXPECT_EQ(seen("summary(4, 1, 0)", 9), (Positions{3, 7}));
  EXPECT_EQ(seen("summary(4, 1, 3)", 9), (Positions{0, 4}));
  EXPECT_EQ(seen("summary(4, 2, 0)", 3), Positions{});
  EXPECT_EQ(seen("previous_row(4)", 9), (Positions{4, 5, 6, 7}));
  EXPECT_EQ(seen("previous_row(4)", 3), Positions{});
  EXPECT_EQ(seen("global(2)", 9), (Positions{0, 1}));
  EXPECT_EQ(seen("global(9)", 1), (Positions{0, 1}));
  EXPECT_EQ(seen("random(5, 1, 4)", 9), (Positions{0, 1, 2, 3, 4, 5, 6, 7, 8, 9}));
}

// The example of the paper: l = 128, c = 8.
TEST(Pattern, PaperExample) {
  EXPECT_EQ(seen("fixed(128, 8)", 128), (Positions{120, 121, 122, 123, 124, 125, 126, 127, 128}));
  EXPECT_EQ(seen("fixed(128, 8)", 256), (Positions{120, 121, 122, 123, 124, 125, 126, 127, 248, 249,
                                                   250, 251, 252, 253, 254, 255, 256}));
  EXPECT_EQ(seen("strided(4)", 9), (Positions{1, 5, 6, 7, 8, 9}));
}

TEST(Pattern, RandomDrawsDistinctBlocksUpToItsOwn) {
  const Random part{3, 7, 4}, other{3, 8, 4};
  int differ = 0, at_own = 0;
  for (std::int64_t q = 0; q < 200; ++q) {
    const std::vector<std::int64_t> keys = part.key_blocks(q);
    ASSERT_EQ(std::set<std::int64_t>(keys.begin(), keys.end()).size(),
              static_cast<std::size_t>(std::min<std::int64_t>(3, q + 1)));
    ASSERT_TRUE(std::is_sorted(keys.begin(), keys.end()));
    ASSERT_GE(keys.front(), 0);
    ASSERT_LE(keys.back(), q);
    ASSERT_EQ(keys, part.key_blocks(q));
    differ += keys != other.key_blocks(q);
    at_own += keys.back() == q;
  }
  EXPECT_GT(differ, 150);
  EXPECT_GT(at_own, 0);
}

// Each of 20 key blocks is drawn with probability 5 / 20; 4,000 draws, six standard deviations.
TEST(Pattern, RandomIsUniform) {
  std::vector<int> drawn(20);
  for (std::uint64_t seed = 0; seed < 4000; ++seed)
    for (const std::int64_t k : Random{5, seed, 1}.key_blocks(19))
      ++drawn[static_cast<std::size_t>(k)];
  for (const int count : drawn) EXPECT_NEAR(count, 1000, 6 * 27.4);
}

TEST(Pattern, HeadsFollowTheWeights) {
  const LayerPattern layer = parse_pattern("3*local(8), column(8)");
  EXPECT_EQ(layer.weights(), 4);
  const std::vector<HeadPattern> heads = layer.heads(8);
  ASSERT_EQ(heads.size(), 8u);
  EXPECT_EQ(heads[5].parts[0], Part(Local{8}));
  EXPECT_EQ(heads[6].parts[0], Part(Column{8}));
  EXPECT_THROW(layer.heads(6), Error);
  EXPECT_THROW(layer.heads(0), Error);
  EXPECT_THROW(layer.heads(std::int64_t{1} << 40), Error);
}

TEST(Pattern, HeadsTakeTheirOwnSummary) {
  const std::vector<HeadPattern> heads = parse_pattern("fixed(128, 32)").heads(6);
  for (std::size_t h = 0; h < heads.size(); ++h)
    EXPECT_EQ(heads[h].parts[1], Part(Summary{128, 32, static_cast<std::int64_t>(h % 4)}));
  EXPECT_EQ(parse_pattern("summary(128, 32, 2)").heads(6)[5].parts[0], Part(Summary{128, 32, 2}));
}

}  // namespace
}  // namespace longstride
