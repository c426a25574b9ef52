#include <gtest/gtest.h>

#include "longstride/error.h"
#include "longstride/inspect.h"

namespace longstride {
namespace {

TEST(PatternReport, PublishedPattern) {
  const PatternReport r = inspect_pattern({.spec = "fixed(128,32)", .length = 12288, .heads = 8});
  EXPECT_EQ(r.pattern, "fixed(128,32)");
  EXPECT_EQ(r.expanded, "row(128) + summary(128, 32)");
  ASSERT_EQ(r.kinds.size(), 4u);
  for (std::size_t k = 0; k < 4; ++k) {
    const HeadReport& head = r.kinds[k];
    EXPECT_EQ(head.parts, (std::vector<std::string>{
                              "row(128)", "summary(128, 32, " + std::to_string(k) + ")"}));
    EXPECT_EQ(head.heads, 2);
    EXPECT_EQ(head.blocks, 19200);
    EXPECT_EQ(head.pairs, 96 * (128 * 129 / 2) + 128 * 32 * (96 * 95 / 2));
    EXPECT_DOUBLE_EQ(head.forward_flops, 256.0 * static_cast<double>(head.pairs));
    EXPECT_DOUBLE_EQ(head.backward_flops, 640.0 * static_cast<double>(head.pairs));
    EXPECT_DOUBLE_EQ(head.forward_bytes, 12288.0 * 2 * 4 * 64);
  }
  EXPECT_EQ(r.pairs, 8 * r.kinds[0].pairs);
}

TEST(PatternReport, KindsOfALayer) {
  const PatternReport r = inspect_pattern({.spec = "3*local(96), column(96)", .length = 3072});
  ASSERT_EQ(r.kinds.size(), 2u);
  EXPECT_EQ(r.kinds[0].heads, 3);
  EXPECT_EQ(r.kinds[0].blocks, 378);
  EXPECT_EQ(r.kinds[0].read_keys, 96);
  EXPECT_EQ(r.kinds[1].heads, 1);
  EXPECT_EQ(r.kinds[1].blocks, 96);
  EXPECT_EQ(r.kinds[1].cache_keys, 3072);
  EXPECT_EQ(r.pairs, 3 * r.kinds[0].pairs + r.kinds[1].pairs);
}

TEST(PatternReport, Refuses) {
  for (const PatternOptions& bad : {
           PatternOptions{.spec = "dense", .length = 0},
           PatternOptions{.spec = "dense", .length = std::int64_t{1} << 40},
           PatternOptions{.spec = "dense", .length = 8, .block = 0},
           PatternOptions{.spec = "dense", .length = 8, .heads = -1},
           PatternOptions{.spec = "2*dense, dense", .length = 8, .heads = 4},
           PatternOptions{.spec = "dense", .length = 8, .head_width = 0},
           PatternOptions{.spec = "dens", .length = 8},
       }) {
    EXPECT_THROW(inspect_pattern(bad), Error) << bad.spec;
    EXPECT_THROW(draw_pattern_text(bad), Error) << bad.spec;
    EXPECT_THROW(draw_pattern_png(bad, "/nowhere/a.png"), Error) << bad.spec;
  }
}

}  // namespace
}  // namespace longstride
