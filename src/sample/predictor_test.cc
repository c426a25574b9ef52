#include "sample/predictor.h"

#include <gtest/gtest.h>

#include <cstring>
#include <random>

#include "sample/predictor_test_util.h"

namespace longstride {
namespace {

TEST(WindowBegin, GoesOnFromTheLastHalf) {
  for (std::int64_t context = 1; context <= 17; ++context) {
    std::int64_t begin = 0;  // step by step, as the sentence in the public header says
    for (std::int64_t history = 0; history < 100; ++history) {
      if (history - begin == context) begin = history - context / 2;
      ASSERT_EQ(window_begin(history, context), begin) << context << " " << history;
    }
  }
}

using test::random_weights;
using test::small_model;

TEST(Predictor, CacheGivesTheBitsOfTheFullPassBeyondTheContext) {
  for (const auto* pattern : {"dense", "strided(6)", "fixed(6, 2)", "local(5), column(5)",
                              "row(8) + previous_row(8) + global(2)", "random(1, 3, 8)"}) {
    const ModelConfig model = small_model(pattern);
    const auto weights = random_weights(model);
    const auto cached = make_predictor(model, weights.vector(), true);
    const auto full = make_predictor(model, weights.vector(), false);
    for (const std::size_t prompt : {0u, 3u, 23u, 24u, 25u, 61u}) {
      std::mt19937_64 random(prompt);
      std::string history;
      while (history.size() < prompt) history.push_back(static_cast<char>(random()));
      cached->restart();
      full->restart();
      for (int i = 0; i < 40; ++i) {
        const auto a = cached->next({history}), b = full->next({history});
        ASSERT_EQ(std::memcmp(a.data, b.data, 256 * sizeof(float)), 0)
            << pattern << ", prompt " << prompt << ", symbol " << i;
        history.push_back(static_cast<char>(random()));
      }
    }
    EXPECT_GT(cached->cache_bytes(), 0);
  }
}

}  // namespace
}  // namespace longstride
