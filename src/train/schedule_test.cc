#include "train/schedule.h"

#include <gtest/gtest.h>

#include <cmath>

namespace longstride {
namespace {

TEST(Schedule, WarmsUpLinearlyThenFollowsTheCosine) {
  TrainConfig t;
  t.steps = 1000, t.warmup = 100, t.lr = 0.002, t.final_lr = 0.1;
  EXPECT_DOUBLE_EQ(learning_rate(t, 0), 0.002 / 100);
  EXPECT_DOUBLE_EQ(learning_rate(t, 49), 0.001);
  EXPECT_DOUBLE_EQ(learning_rate(t, 99), 0.002);
  EXPECT_DOUBLE_EQ(learning_rate(t, 100), 0.002);
  EXPECT_NEAR(learning_rate(t, 550), 0.002 * 0.55, 1e-15);  // half way
  EXPECT_NEAR(learning_rate(t, 325), 0.002 * (0.1 + 0.9 * (2 + std::sqrt(2)) / 4), 1e-15);
  EXPECT_NEAR(learning_rate(t, 1000), 0.0002, 1e-15);
  for (std::int64_t s = 101; s <= 1000; ++s)
    EXPECT_LT(learning_rate(t, s), learning_rate(t, s - 1));
}

TEST(Schedule, EdgesStayFinite) {
  TrainConfig t;
  t.lr = 1;
  t.steps = 5, t.warmup = 0;
  EXPECT_DOUBLE_EQ(learning_rate(t, 0), 1);
  t.steps = 5, t.warmup = 5;
  EXPECT_DOUBLE_EQ(learning_rate(t, 4), 1);
  t.steps = 5, t.warmup = 50;  // ends before the warm-up does
  EXPECT_DOUBLE_EQ(learning_rate(t, 4), 0.1);
}

}  // namespace
}  // namespace longstride
