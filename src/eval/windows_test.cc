#include "eval/windows.h"

#include <gtest/gtest.h>

#include <random>
#include <vector>

#include "longstride/error.h"

namespace longstride {
namespace {

TEST(Windows, ScoreEverySymbolOnceInOrderWithItsContext) {
  std::mt19937_64 random(7);
  for (int trial = 0; trial < 2000; ++trial) {
    const auto draw = [&](std::int64_t low, std::int64_t high) {
      return std::uniform_int_distribution<std::int64_t>(low, high)(random);
    };
    const std::int64_t n = draw(0, 300), context = draw(1, 80), least = draw(0, context - 1);
    const Windows windows(n, context, least);
    std::int64_t next = 0;
    for (std::int64_t w = 0; w < windows.count(); ++w) {
      const Window one = windows[w];
      ASSERT_EQ(one.first, next) << "window " << w << " of n " << n << ", context " << context;
      ASSERT_GT(one.scored(), 0);
      ASSERT_LE(one.end - one.begin, context);
      ASSERT_LE(one.end, n);
      ASSERT_GE(one.begin, 0);
      ASSERT_GE(one.first - one.begin, w > 0 ? least : 0);
      next = one.end;
    }
    ASSERT_EQ(next, n) << "context " << context << ", min_context " << least;
  }
}

TEST(Windows, CountIsThatOfThePaper) {  // Table 3: enwik8 at 12,160 of 12,288, 128 a pass
  EXPECT_EQ(Windows(5'000'000, 12'288, 12'160).count(), 38'968);
  EXPECT_EQ(Windows(5'000'000, 12'288, 0).count(), 407);
}

TEST(Windows, RefuseWhatCannotBe) {
  EXPECT_THROW(Windows(10, 8, 8), Error);
  EXPECT_THROW(Windows(10, 8, -1), Error);
  EXPECT_THROW(Windows(-1, 8, 0), Error);
}

}  // namespace
}  // namespace longstride
