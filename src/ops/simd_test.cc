// The exponential of simd.h, with every instruction set.
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "ops/simd_test.cc"
#include "hwy/foreach_target.h"
// After foreach_target.h, which includes this file once per instruction set.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "ops/simd.h"
#include "ops/test_util.h"

HWY_BEFORE_NAMESPACE();
namespace longstride::ops::HWY_NAMESPACE {

// y = e^x, in groups of three vectors.
void exp_all(const float* x, float* y, std::int64_t n) {
  const Floats d;
  for_groups<3>(n, [&](std::int64_t i, auto lanes, auto vectors) {
    constexpr int kCount = decltype(vectors)::value;
    FloatVec in[kCount], out[kCount];
    for (int k = 0; k < kCount; ++k) in[k] = lanes.load(x + i + k * float_lanes());
    exp(d, in, out);
    for (int k = 0; k < kCount; ++k) lanes.store(out[k], y + i + k * float_lanes());
  });
}

void exp_one_by_one(const float* x, float* y, std::int64_t n) {
  for_vectors(
      n, [&](std::int64_t i, auto lanes) { lanes.store(exp(Floats(), lanes.load(x + i)), y + i); });
}

}  // namespace longstride::ops::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace longstride::ops {

namespace {

HWY_EXPORT(exp_all);
HWY_EXPORT(exp_one_by_one);

std::vector<float> exp_of(const std::vector<float>& x) {
  auto y = test::poisoned<float>(static_cast<std::int64_t>(x.size()));
  HWY_DYNAMIC_DISPATCH(exp_all)(x.data(), y.data(), static_cast<std::int64_t>(x.size()));
  return y;
}

TEST(Exp, WithinTwoUnitsInTheLastPlace) {
  std::vector<float> x;
  for (int i = -8690; i <= 8800; ++i)
    for (int j = 0; j < 8; ++j) x.push_back(static_cast<float>(0.01 * i + 0.0011 * j));
  for (int exponent = -40; exponent < 6; ++exponent)
    for (int i = 0; i < 100; ++i) {
      x.push_back(std::ldexp(1 + 0.01f * static_cast<float>(i), exponent));
      x.push_back(-x.back());
    }
  test::for_each_target([&] {
    const auto y = exp_of(x);
    double worst = 0;
    for (std::size_t i = 0; i < x.size(); ++i) {
      const double want = std::exp(static_cast<double>(x[i]));
      const auto near = static_cast<float>(want);
      const double ulp = static_cast<double>(std::nextafter(near, 3e38f) - near);
      worst = std::max(worst, std::abs(static_cast<double>(y[i]) - want) / ulp);
    }
    EXPECT_LE(worst, 2.0);
  });
}

TEST(Exp, SpecialValues) {
  constexpr float kInf = std::numeric_limits<float>::infinity();
  test::for_each_target([] {
    const auto y = exp_of({0.0f, -0.0f, -88, -1e4f, -1e30f, -3e38f, -kInf});
    EXPECT_EQ(y, (std::vector<float>{1, 1, 0, 0, 0, 0, 0}));
    for (const float nan : exp_of(std::vector<float>(20, std::nanf(""))))
      EXPECT_TRUE(std::isnan(nan));
  });
}

TEST(Exp, NoDenormals) {
  std::vector<float> x;
  for (float at = -86; at > -89; at = std::nextafter(at, -100.0f)) x.push_back(at);
  test::for_each_target([&] {
    std::size_t zeros = 0;
    for (const float y : exp_of(x)) {
      EXPECT_TRUE(y == 0 || y >= std::numeric_limits<float>::min()) << y;
      zeros += y == 0;
    }
    EXPECT_GT(zeros, x.size() / 2);
    EXPECT_LT(zeros, x.size());
  });
}

TEST(Exp, GroupsChangeNoBits) {
  test::for_each_target([] {
    const auto x = test::random_normal<float>(103, 1, 15);
    auto alone = test::poisoned<float>(103);
    HWY_DYNAMIC_DISPATCH(exp_one_by_one)(x.data(), alone.data(), 103);
    EXPECT_TRUE(test::same_bits(exp_of(x), alone));
  });
}

}  // namespace

}  // namespace longstride::ops
#endif  // HWY_ONCE
