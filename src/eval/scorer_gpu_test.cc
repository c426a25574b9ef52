#include <cmath>
#include <random>
#include <vector>

#include "device/gpu_test_util.h"
#include "eval/scorer.h"
#include "model/parameters.h"

namespace longstride {
namespace {

class CudaScorerTest : public test::GpuTest {
 protected:
  CudaScorerTest() {
    const ParameterLayout layout(model());
    weights_.resize(static_cast<std::size_t>(layout.extent));
    std::mt19937_64 random(5);
    std::normal_distribution<float> normal(0, 0.3f);
    for (const auto& t : layout.tensors)
      for (std::int64_t e = 0; e < t.size; ++e)
        weights_[static_cast<std::size_t>(t.offset + e)] = normal(random);
    for (int i = 0; i < 3000; ++i) data_.push_back(static_cast<std::uint8_t>(random()));
  }

  static ModelConfig model() {
    ModelConfig m;
    m.layers = 2, m.width = 16, m.heads = 2, m.context = 40;
    m.attention = {"fixed(8, 2)", "strided(7)"};
    return m;
  }

  Vector<const float> weights() const { return {weights_.data(), std::ssize(weights_)}; }

  std::vector<double> score(WindowScorer& scorer, Vector<const float> weights,
                            const Windows& windows, std::int64_t group) const {
    scorer.use(weights);
    std::vector<double> bits;
    for (std::int64_t w = 0; w < windows.count(); w += group)
      scorer.score(data_.data(), windows, w, std::min(windows.count(), w + group), bits);
    return bits;
  }

  std::vector<float> weights_;
  std::vector<std::uint8_t> data_;
};

TEST_F(CudaScorerTest, AgreesWithTheCpuSymbolBySymbol) {
  Scorer cpu(model());
  const auto gpu = make_cuda_scorer(model(), "f32");
  for (const std::int64_t least : {0, 13, 39})
    for (const std::int64_t symbols : {1, 39, 41, 2017}) {
      const Windows windows(symbols, 40, least);
      const auto want = score(cpu, weights(), windows, 5);
      const auto got = score(*gpu, weights(), windows, gpu->group());
      ASSERT_EQ(got.size(), want.size());
      for (std::size_t i = 0; i < want.size(); ++i)
        ASSERT_NEAR(got[i], want[i], 1e-5 * std::max(1.0, want[i])) << i << " of " << symbols;
      EXPECT_EQ(score(*gpu, weights(), windows, gpu->group()), got);
    }
}

TEST_F(CudaScorerTest, TakesWeightsFromHostOrDeviceAndNewOnes) {
  const Windows windows(900, 40, 0);
  const auto gpu = make_cuda_scorer(model(), "bf16");
  const auto want = score(*gpu, weights(), windows, gpu->group());
  const auto on_device = test::to_device(weights_);
  EXPECT_EQ(score(*gpu, on_device.vector(), windows, gpu->group()), want);
  for (float& w : weights_) w *= 1.5f;
  const auto other = score(*gpu, weights(), windows, gpu->group());
  EXPECT_NE(other, want);
  EXPECT_EQ(score(*gpu, on_device.vector(), windows, gpu->group()), want);
}

TEST_F(CudaScorerTest, MeanIsThatOfTheCpu) {
  Scorer cpu(model());
  const auto gpu = make_cuda_scorer(model(), "f32");
  const double want = mean_bits(cpu, weights(), data_.data(), 2999, 40);
  EXPECT_NEAR(mean_bits(*gpu, weights(), data_.data(), 2999, 40), want, 1e-5 * want);
}

}  // namespace
}  // namespace longstride
