#include "sample/cuts.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>
#include <random>
#include <set>

#include "base/rng.h"
#include "longstride/error.h"

namespace longstride {
namespace {

std::vector<float> random_logits(std::mt19937_64& random, std::size_t count) {
  std::normal_distribution<float> normal(0, 2);
  std::vector<float> logits(count);
  for (float& l : logits) l = std::round(4 * normal(random)) / 4;  // ties on purpose
  return logits;
}

std::vector<Choice> apply(const Cuts& cuts, const std::vector<float>& logits) {
  return apply(cuts, Vector<const float>{logits.data(), std::ssize(logits)});
}

// The definition, symbol by symbol, without sorting: is `symbol` kept?
struct BruteForce {
  std::vector<double> p;
  explicit BruteForce(const std::vector<float>& logits, double temperature) {
    double sum = 0;
    for (const float l : logits) sum += std::exp(double(l) / temperature);
    for (const float l : logits) p.push_back(std::exp(double(l) / temperature) / sum);
  }
  std::size_t rank(const std::vector<float>& logits, std::size_t s) const {  // symbols before it
    std::size_t before = 0;
    for (std::size_t o = 0; o < p.size(); ++o)
      before += logits[o] > logits[s] || (logits[o] == logits[s] && o < s);
    return before;
  }
};

TEST(Cuts, AgreeWithTheDefinition) {
  std::mt19937_64 random(3);
  for (int trial = 0; trial < 500; ++trial) {
    const auto logits = random_logits(random, 1 + random() % 60);
    const std::size_t n = logits.size();
    const Cuts cuts{.temperature = 0.3 + 0.1 * double(random() % 20),
                    .top_k = std::int64_t(random() % 12),
                    .top_p = 1 - 0.137 * double(random() % 7),
                    .min_p = 0.11 * double(random() % 5)};
    const BruteForce brute(logits, cuts.temperature);
    std::vector<std::size_t> order(n);
    for (std::size_t s = 0; s < n; ++s) order[brute.rank(logits, s)] = s;

    const std::size_t k = cuts.top_k ? std::min<std::size_t>(n, std::size_t(cuts.top_k)) : n;
    double in_k = 0;
    for (std::size_t r = 0; r < k; ++r) in_k += brute.p[order[r]];
    std::set<std::size_t> want;
    double before = 0;
    bool doubtful = false;  // a sum that lies on the border to the last bits
    for (std::size_t r = 0; r < k; ++r) {
      const double p = brute.p[order[r]];
      doubtful |= cuts.top_p < 1 && std::abs(before - cuts.top_p * in_k) < 1e-12;
      doubtful |= std::abs(p - cuts.min_p * brute.p[order[0]]) < 1e-12;
      const bool top_p = cuts.top_p == 1 || r == 0 || before < cuts.top_p * in_k;
      if (top_p && p >= cuts.min_p * brute.p[order[0]]) want.insert(order[r]);
      before += p;
    }
    if (doubtful) continue;

    const auto got = apply(cuts, logits);
    double kept = 0, sum = 0;
    for (const std::size_t s : want) kept += brute.p[s];
    ASSERT_EQ(got.size(), want.size());
    for (std::size_t r = 0; r < got.size(); ++r) {
      ASSERT_EQ(got[r].symbol, order[r]);
      ASSERT_NEAR(got[r].probability, brute.p[order[r]] / kept, 1e-12);
      sum += got[r].probability;
    }
    ASSERT_NEAR(sum, 1, 1e-12);
  }
}

TEST(Cuts, TemperatureZeroTakesTheLowestByteOfTheLargest) {
  const std::vector<float> logits = {1, 5, -3, 5, 2};
  const auto got = apply({.temperature = 0}, logits);
  ASSERT_EQ(got.size(), 1u);
  EXPECT_EQ(got[0].symbol, 1);
  EXPECT_EQ(draw(got, 0.999999), 1);
}

TEST(Cuts, ExtremeTemperaturesAndLogitsStayFinite) {
  const std::vector<float> logits = {3e38f, -3e38f, 0};
  for (const double t : {1e-300, 1e-3, 1.0, 1e300}) {
    double sum = 0;
    for (const Choice& c : apply({.temperature = t}, logits)) sum += c.probability;
    EXPECT_NEAR(sum, 1, 1e-12) << "temperature " << t;
  }
}

TEST(Cuts, RefuseNonFiniteLogitsAndSettingsOutOfRange) {
  constexpr float kInf = std::numeric_limits<float>::infinity();
  constexpr double kNan = std::numeric_limits<double>::quiet_NaN();
  for (const float bad : {kInf, -kInf, std::nanf("")}) EXPECT_THROW(apply({}, {0, bad}), Error);
  for (const Cuts& bad :
       {Cuts{.temperature = -1}, Cuts{.temperature = kNan}, Cuts{.top_k = -1}, Cuts{.top_p = 0},
        Cuts{.top_p = 1.5}, Cuts{.top_p = kNan}, Cuts{.min_p = -0.1}, Cuts{.min_p = kNan}})
    EXPECT_THROW(validate(bad), Error);
}

TEST(Draw, CoversExactlyItsStretch) {
  const std::vector<Choice> choices = {{7, 0.5}, {3, 0.25}, {9, 0.25}, {1, 0}};
  EXPECT_EQ(draw(choices, 0), 7);
  EXPECT_EQ(draw(choices, std::nextafter(0.5, 0)), 7);
  EXPECT_EQ(draw(choices, 0.5), 3);
  EXPECT_EQ(draw(choices, 0.75), 9);
  EXPECT_EQ(draw({{7, 0.5}, {3, 0.5 - 1e-16}, {1, 0}}, std::nextafter(1, 0)), 3);
}

// Pearson's statistic of 200,000 draws over 8 symbols; 7 degrees of freedom exceed 24.3 once in a
// thousand runs, and the seed is fixed.
TEST(Draw, FollowsTheDistribution) {
  const std::vector<float> logits = {0, 1, 0.5, -1, 2, -0.5, 0.25, 1.5};
  const auto choices = apply({}, logits);
  constexpr int kDraws = 200'000;
  std::array<int, 8> seen{};
  for (std::uint64_t i = 0; i < kDraws; ++i) {
    const Random4 r = random4(11, Stream::sample, 0, i);
    ++seen[draw(choices, uniform(r[0], r[1]))];
  }
  double statistic = 0;
  for (const Choice& c : choices) {
    const double want = kDraws * c.probability;
    statistic += (seen[c.symbol] - want) * (seen[c.symbol] - want) / want;
  }
  EXPECT_LT(statistic, 24.3);
}

}  // namespace
}  // namespace longstride
