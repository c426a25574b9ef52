#include <cstring>
#include <random>

#include "as_good_as.h"
#include "device/gpu_test_util.h"
#include "sample/predictor.h"
#include "sample/predictor_test_util.h"

namespace longstride {
namespace {

class CudaPredictorTest : public test::GpuTest {};

using test::random_weights;
using test::small_model;

std::string random_text(std::size_t size, std::uint64_t seed) {
  std::mt19937_64 random(seed);
  std::string text;
  while (text.size() < size) text.push_back(static_cast<char>(random()));
  return text;
}

std::vector<double> row(Matrix<const float> logits, std::int64_t r) {
  return {logits.row(r), logits.row(r) + 256};
}

TEST_F(CudaPredictorTest, CacheAndFullPassGiveTheLogitsOfTheCpuBeyondTheContext) {
  for (const auto* pattern : {"dense", "strided(6)", "fixed(6, 2)", "local(5), column(5)",
                              "row(8) + previous_row(8) + global(2)", "random(1, 3, 8)"}) {
    const ModelConfig model = small_model(pattern);
    const auto weights = random_weights(model);
    const auto cpu = make_predictor(model, weights.vector(), true);
    const auto cached = make_cuda_predictor(model, weights.vector(), true, 1, "f32");
    const auto full = make_cuda_predictor(model, weights.vector(), false, 1, "f32");
    for (const std::size_t prompt : {0u, 3u, 23u, 24u, 61u}) {
      std::string history = random_text(prompt, prompt);
      for (const auto* one : {&cpu, &cached, &full}) (*one)->restart();
      for (int i = 0; i < 30; ++i) {
        const auto want = row(cpu->next({history}), 0);
        const auto a = row(cached->next({history}), 0), b = row(full->next({history}), 0);
        ASSERT_LE(test::relative_l2(a, want), 1e-5) << pattern << " " << prompt << " " << i;
        ASSERT_LE(test::relative_l2(b, want), 1e-5) << pattern << " " << prompt << " " << i;
        history += random_text(1, static_cast<std::uint64_t>(i));
      }
    }
    EXPECT_GT(cached->cache_bytes(), 0);
  }
}

TEST_F(CudaPredictorTest, ARowDoesNotDependOnTheOthers) {
  const ModelConfig model = small_model("strided(6), fixed(6, 2)");
  const auto weights = random_weights(model);
  for (const auto* precision : {"f32", "bf16"}) {
    const auto many = make_cuda_predictor(model, weights.vector(), true, 100, precision);
    const auto one = make_cuda_predictor(model, weights.vector(), true, 1, precision);
    ASSERT_GE(many->most(), 7);
    ASSERT_EQ(one->most(), 1);
    many->restart();
    std::vector<std::string> histories;
    for (std::uint64_t s = 0; s < 7; ++s) histories.push_back(random_text(5, s));
    std::vector<std::vector<std::vector<double>>> rows(7);
    for (std::uint64_t i = 0; i < 40; ++i) {
      const auto logits = many->next(histories);
      for (std::size_t s = 0; s < 7; ++s) {
        rows[s].push_back(row(logits, static_cast<std::int64_t>(s)));
        histories[s] += random_text(1, 100 * i + s);
      }
    }
    for (std::size_t s = 0; s < 7; ++s) {
      one->restart();
      for (std::size_t i = 0; i < 40; ++i)
        ASSERT_EQ(row(one->next({histories[s].substr(0, 5 + i)}), 0), rows[s][i])
            << precision << ", sequence " << s << ", symbol " << i;
    }
  }
}

}  // namespace
}  // namespace longstride
