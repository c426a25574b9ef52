#include "train/flops.h"

#include <gtest/gtest.h>

#include "longstride/pattern.h"
#include "train/training_fixture.h"

namespace longstride {
namespace {

TEST(TrainingFlops, CountProductsAndPairs) {
  const ModelConfig model = test::small_config().model;
  double weights = 0;  // by the shapes of facts.md section 2
  const double d = 16, qk = 16, ff = 64;
  for (int layer = 0; layer < 2; ++layer) weights += 2 * d * qk + 2 * d * d + 2 * d * ff;
  weights += d * 256;
  double pairs = 0;  // of both heads of both layers, by the predicate
  for (const auto& spec : model.attention)
    for (const auto& head : parse_pattern(spec).heads(2))
      for (Position i = 0; i < 32; ++i)
        for (Position j = 0; j <= i; ++j) pairs += head.attends(i, j);
  const double want = 6 * weights + 6 * (8 + 8) * pairs / 32;
  EXPECT_DOUBLE_EQ(training_flops(model, ParameterLayout(model)), want);
}

}  // namespace
}  // namespace longstride
