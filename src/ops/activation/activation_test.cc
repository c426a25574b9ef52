#include "ops/activation/activation.h"

#include <gtest/gtest.h>

#include <algorithm>

#include "as_good_as.h"
#include "ops/activation/activation_ref.h"
#include "ops/convert/bf16_test_util.h"
#include "ops/test_util.h"

namespace longstride::ops {

namespace {

using test::as_good_as, test::dot, test::error_of, test::for_each_target, test::numeric_gradient;
using test::poisoned, test::random_normal, test::relative_l2, test::same_bits, test::view;

template <class Real>
struct Problem {
  Problem(std::int64_t size, double scale) : n(size), x(random_normal<Real>(size, 1, scale)) {}

  Activation<Real> forward() { return {.x = view(x), .y = view(y)}; }
  ActivationBackward<Real> backward() { return {.x = view(x), .dy = view(dy), .dx = view(dx)}; }

  std::int64_t n;
  std::vector<Real> x, dy = random_normal<Real>(n, 2), y = poisoned<Real>(n),
                       dx = poisoned<Real>(n);
};

class ActivationTest : public testing::TestWithParam<std::tuple<std::int64_t, double>> {
 protected:
  template <class Real>
  static Problem<Real> problem() {
    return {std::get<0>(GetParam()), std::get<1>(GetParam())};
  }
};

TEST_P(ActivationTest, MatchesFloat64) {
  for_each_target([] {
    auto truth = problem<double>();
    auto plain = problem<float>(), got = problem<float>();
    activation(truth.forward());
    activation_backward(truth.backward());
    ref::activation(plain.forward());
    ref::activation_backward(plain.backward());
    activation(got.forward());
    activation_backward(got.backward());
    EXPECT_TRUE(as_good_as<float>(plain.y, got.y, truth.y));
    EXPECT_TRUE(as_good_as<float>(plain.dx, got.dx, truth.dx));
    EXPECT_LE(relative_l2(got.y, truth.y), 2e-6);
    EXPECT_LE(relative_l2(got.dx, truth.dx), 2e-6);
  });
}

TEST_P(ActivationTest, SameBitsForAnyThreads) {
  test::expect_same_for_any_threads([] {
    auto p = problem<float>();
    activation(p.forward());
    activation_backward(p.backward());
    p.y.insert(p.y.end(), p.dx.begin(), p.dx.end());
    return p.y;
  });
}

// In bf16: the plain formula is the one in float, rounded at its end.
TEST_P(ActivationTest, Bf16MatchesFloat64) {
  const auto [n, scale] = GetParam();
  auto truth = problem<double>();
  auto plain = problem<float>();
  truth.x = test::random_bf16<double>(n, 1, scale);
  plain.x = test::random_bf16<float>(n, 1, scale);
  truth.dy = test::random_bf16<double>(n, 2);
  plain.dy = test::random_bf16<float>(n, 2);
  activation(truth.forward());
  activation_backward(truth.backward());
  ref::activation(plain.forward());
  ref::activation_backward(plain.backward());
  plain.y = test::to_float(test::to_bf16(plain.y));
  plain.dx = test::to_float(test::to_bf16(plain.dx));
  for_each_target([&, size = n] {
    const auto x = test::to_bf16(plain.x), dy = test::to_bf16(plain.dy);
    test::GuardedBf16 y(size), dx(size);
    activation(Activation<bf16>{view(x), y.vector()});
    activation_backward(ActivationBackward<bf16>{view(x), view(dy), dx.vector()});
    EXPECT_TRUE(as_good_as<float>(plain.y, y.floats(), truth.y));
    EXPECT_TRUE(as_good_as<float>(plain.dx, dx.floats(), truth.dx));
    EXPECT_TRUE(y.untouched_behind() && dx.untouched_behind());
  });
}

TEST_P(ActivationTest, Bf16SameBitsForAnyThreads) {
  test::expect_same_for_any_threads([] {
    const auto [n, scale] = GetParam();
    const auto x = test::to_bf16(random_normal<float>(n, 1, scale));
    const auto dy = test::to_bf16(random_normal<float>(n, 2));
    test::GuardedBf16 y(n), dx(n);
    activation(Activation<bf16>{view(x), y.vector()});
    activation_backward(ActivationBackward<bf16>{view(x), view(dy), dx.vector()});
    auto all = y.floats();
    for (const float value : dx.floats()) all.push_back(value);
    return all;
  });
}

INSTANTIATE_TEST_SUITE_P(SizesAndScales, ActivationTest,
                         testing::Combine(testing::Values(1, 3, 17, 100, 40001),
                                          testing::Values(0.01, 1.0, 30.0)));

TEST(Activation, ElementDoesNotDependOnItsPlace) {
  for_each_target([] {
    Problem<float> whole(67, 2), alone(67, 2);
    activation(whole.forward());
    activation_backward(whole.backward());
    for (std::int64_t i = 0; i < alone.n; ++i) {
      activation({.x = {alone.x.data() + i, 1}, .y = {alone.y.data() + i, 1}});
      activation_backward({.x = {alone.x.data() + i, 1},
                           .dy = {alone.dy.data() + i, 1},
                           .dx = {alone.dx.data() + i, 1}});
    }
    EXPECT_TRUE(same_bits(alone.y, whole.y));
    EXPECT_TRUE(same_bits(alone.dx, whole.dx));
  });
}

TEST(Activation, GradientIsTheDerivative) {
  for (const std::int64_t n : {1, 2, 7, 33, 129}) {
    Problem<double> p(n, 2);
    const auto dx = numeric_gradient(p.x, [&] {
      activation(p.forward());
      return dot(p.y, p.dy);
    });
    activation_backward(p.backward());
    EXPECT_LE(relative_l2(p.dx, dx), 1e-8) << n;
  }
}

TEST(Activation, ExtremeInputs) {
  constexpr float kInf = std::numeric_limits<float>::infinity();
  for_each_target([&] {
    Problem<float> p(9, 1);
    p.x = {-1e30f, -1e4f, -100, -50, 0, 50, 1e4f, 1e30f, std::nanf("")};
    std::fill(p.dy.begin(), p.dy.end(), 1.0f);
    activation(p.forward());
    activation_backward(p.backward());
    EXPECT_EQ(std::vector(p.y.begin() + 4, p.y.end() - 1), std::vector({0.0f, 50.0f, 1e4f, 1e30f}));
    EXPECT_NEAR(p.y[3] / (-50 * std::exp(-1.702 * 50)), 1, 1e-5);
    for (int i = 0; i < 8; ++i) EXPECT_LT(std::abs(p.dx[static_cast<std::size_t>(i)]), 1.2f) << i;
    EXPECT_EQ(p.y[0], 0.0f);
    EXPECT_EQ(p.dx[7], 1.0f);
    EXPECT_TRUE(std::isnan(p.y[8]) && std::isnan(p.dx[8]));
    p.x[0] = kInf;
    activation(p.forward());
    EXPECT_EQ(p.y[0], kInf);
  });
}

TEST(Activation, Bf16ElementDoesNotDependOnItsPlaceAndInPlace) {
  for_each_target([] {
    auto x = test::to_bf16(random_normal<float>(1131, 1)), dy = x;
    test::GuardedBf16 y(1131), dx(1131), y1(1131), dx1(1131);
    activation(Activation<bf16>{view(x), y.vector()});
    activation_backward(ActivationBackward<bf16>{view(x), view(dy), dx.vector()});
    for (std::size_t i = 0; i < x.size(); ++i) {
      activation(Activation<bf16>{{x.data() + i, 1}, {y1.data() + i, 1}});
      activation_backward(
          ActivationBackward<bf16>{{x.data() + i, 1}, {dy.data() + i, 1}, {dx1.data() + i, 1}});
    }
    EXPECT_TRUE(same_bits(y1.floats(), y.floats()));
    EXPECT_TRUE(same_bits(dx1.floats(), dx.floats()));
    activation_backward(ActivationBackward<bf16>{view(x), view(dy), view(dy)});
    activation(Activation<bf16>{view(x), view(x)});
    EXPECT_TRUE(same_bits(test::to_float(x), y.floats()));
    EXPECT_TRUE(same_bits(test::to_float(dy), dx.floats()));
  });
}

TEST(Activation, InPlace) {
  Problem<float> p(100, 1), q(100, 1);
  activation(p.forward());
  activation_backward(p.backward());
  activation_backward({.x = view(q.x), .dy = view(q.dy), .dx = view(q.dy)});
  activation({.x = view(q.x), .y = view(q.x)});
  EXPECT_TRUE(same_bits(q.x, p.y));
  EXPECT_TRUE(same_bits(q.dy, p.dx));
}

TEST(Activation, RejectsWrongSizes) {
  Problem<float> p(5, 1);
  auto op = p.forward();
  op.y.size = 4;
  EXPECT_EQ(error_of([&] { activation(op); }), "activation: y has 4 entries, want 5");
  auto back = p.backward();
  back.dy.data = nullptr;
  EXPECT_EQ(error_of([&] { activation_backward(back); }),
            "activation_backward: dy of 5 entries has no memory");
}

}  // namespace

}  // namespace longstride::ops
