#include "eval/scorer.h"

#include <gtest/gtest.h>

#include <cmath>
#include <numbers>
#include <random>
#include <vector>

#include "base/threads.h"
#include "model/parameters.h"

namespace longstride {
namespace {

class ScorerTest : public testing::Test {
 protected:
  ScorerTest() : weights_(ParameterLayout(model()).extent) {
    std::mt19937_64 random(5);
    std::normal_distribution<float> normal(0, 0.3f);
    for (const auto& t : ParameterLayout(model()).tensors)
      for (std::int64_t e = 0; e < t.size; ++e) weights_[t.offset + e] = normal(random);
    for (int i = 0; i < 500; ++i) data_.push_back(static_cast<std::uint8_t>(random()));
  }
  ~ScorerTest() override { set_threads(0); }

  static ModelConfig model() {
    ModelConfig m;
    m.layers = 2, m.width = 16, m.heads = 2, m.context = 40;
    m.attention = {"fixed(8, 2)", "strided(7)"};
    return m;
  }

  std::vector<double> score(const Windows& windows, std::int64_t group) {
    Scorer scorer(model());
    scorer.use(weights_.vector());
    std::vector<double> bits;
    for (std::int64_t w = 0; w < windows.count(); w += group)
      scorer.score(data_.data(), windows, w, std::min(windows.count(), w + group), bits);
    return bits;
  }

  Buffer<float> weights_;
  std::vector<std::uint8_t> data_;
};

TEST_F(ScorerTest, AgreesWithTheLogitsOfEachWindow) {
  for (const std::int64_t least : {0, 13, 39}) {
    const Windows windows(201, 40, least);
    const auto bits = score(windows, 5);
    ASSERT_EQ(bits.size(), 201u);
    FullPass<float> pass(model());
    const Buffer<float> logits(40 * 256);
    for (std::int64_t w = 0; w < windows.count(); ++w) {
      const Window one = windows[w];
      const std::int64_t length = one.end - one.begin;
      pass.logits(weights_.vector(), data_.data() + one.begin, length, logits.matrix(length, 256));
      for (std::int64_t i = one.first; i < one.end; ++i) {
        const float* row = logits.data() + (i - one.begin) * 256;
        double sum = 0;
        for (int v = 0; v < 256; ++v) sum += std::exp(double(row[v]));
        const double want = (std::log(sum) - row[data_[std::size_t(i)]]) / std::numbers::ln2;
        ASSERT_NEAR(bits[std::size_t(i)], want, 1e-5) << i << " with min_context " << least;
      }
    }
  }
}

TEST_F(ScorerTest, SameBitsForAnyThreadsAndGroups) {
  const Windows windows(500, 40, 25);
  set_threads(1);
  const auto want = score(windows, 1);
  for (const int count : {1, 2, 3, 4}) {
    set_threads(count);
    for (const std::int64_t group : {1, 2, 7, 100}) EXPECT_EQ(score(windows, group), want);
  }
}

TEST_F(ScorerTest, MeanIsThatOfTheSymbolsInOrder) {
  double sum = 0;
  for (const double b : score(Windows(333, 40, 0), 100)) sum += b;
  Scorer scorer(model());
  EXPECT_EQ(mean_bits(scorer, weights_.vector(), data_.data(), 333, 40), sum / 333);
}

}  // namespace
}  // namespace longstride
