#include "base/rng.h"

#include <gtest/gtest.h>

#include <cmath>
#include <set>

namespace longstride {

namespace {

// The known answers that come with the published generator.
TEST(Rng, PhiloxKnownAnswers) {
  using Philox = r123::Philox4x32;
  const auto zeros = Philox()({{0, 0, 0, 0}}, {{0, 0}});
  EXPECT_EQ(zeros[0], 0x6627e8d5u);
  EXPECT_EQ(zeros[1], 0xe169c58du);
  EXPECT_EQ(zeros[2], 0xbc57ac4cu);
  EXPECT_EQ(zeros[3], 0x9b00dbd8u);
  const std::uint32_t f = 0xffffffffu;
  const auto ones = Philox()({{f, f, f, f}}, {{f, f}});
  EXPECT_EQ(ones[0], 0x408f276du);
  EXPECT_EQ(ones[1], 0x41c83b0eu);
  EXPECT_EQ(ones[2], 0xa20bc7c6u);
  EXPECT_EQ(ones[3], 0x6d5451fdu);
}

// Runs, masks and samples that were made yesterday must come out the same tomorrow.
TEST(Rng, CounterLayoutIsFixed) {
  using Philox = r123::Philox4x32;
  const Random4 got = random4(0x0123456789abcdefu, Stream::sample, 0x1234567890u, 0xfedcba9876u, 5);
  const auto want = Philox()({{0xdcba9876u, 0xfeu ^ 0x12000000u, 0x34567890u, (4u << 20) | 5u}},
                             {{0x89abcdefu, 0x01234567u}});
  for (std::size_t word = 0; word < 4; ++word) EXPECT_EQ(got[word], want[word]);
}

TEST(Rng, EveryArgumentMatters) {
  std::set<Random4> seen;
  for (const std::uint64_t seed : {0ull, 1ull, 1ull << 32})
    for (const Stream stream : {Stream::init, Stream::dropout, Stream::data})
      for (const std::uint64_t step : {0ull, 1ull, 1ull << 33})
        for (const std::uint64_t index : {0ull, 1ull, 1ull << 32})
          for (const std::uint32_t lane : {0u, 1u, 1000u})
            EXPECT_TRUE(seen.insert(random4(seed, stream, step, index, lane)).second);
  EXPECT_EQ(seen.size(), 243u);
}

TEST(Rng, UniformStaysBelowOne) {
  EXPECT_EQ(uniform(0, 0), 0.0);
  EXPECT_LT(uniform(~0u, ~0u), 1.0);
  EXPECT_EQ(uniform(1u << 31, 0), 0.5);
}

TEST(Rng, NormalHasItsMoments) {
  constexpr int kDraws = 100000;
  double sum = 0, squares = 0, fourth = 0, product = 0;
  for (int i = 0; i < kDraws; ++i) {
    const auto z = normal2(random4(1, Stream::test, 0, static_cast<std::uint64_t>(i)));
    product += z[0] * z[1];
    for (const double value : z) {
      ASSERT_TRUE(std::isfinite(value));
      sum += value;
      squares += value * value;
      fourth += value * value * value * value;
    }
  }
  // Five standard errors: sd(z) = 1, sd(z^2) = sqrt 2, sd(z^4) = sqrt 96, of 2 kDraws values.
  const double n = 2.0 * kDraws, error = 5 / std::sqrt(n);
  EXPECT_NEAR(sum / n, 0, error);
  EXPECT_NEAR(squares / n, 1, error * std::sqrt(2.0));
  EXPECT_NEAR(fourth / n, 3, error * std::sqrt(96.0));
  EXPECT_NEAR(product / kDraws, 0, 5 / std::sqrt(1.0 * kDraws));
  EXPECT_TRUE(std::isfinite(normal2({~0u, ~0u, 0, 0})[0]));
}

}  // namespace

}  // namespace longstride
