#include "ops/adamw/adamw.h"

#include <gtest/gtest.h>

#include "as_good_as.h"
#include "ops/adamw/adamw_ref.h"
#include "ops/test_util.h"

namespace longstride::ops {

namespace {

using test::as_good_as, test::error_of, test::for_each_target, test::poisoned;
using test::random_normal, test::same_bits, test::view;

template <class Real>
struct Problem {
  explicit Problem(std::int64_t size) : n(size) {
    for (Real& value : v) value *= value;
    decayed = {{0, n / 5}, {n / 5, n / 4}, {n / 2, n - n / 7}};
  }

  AdamW<Real> op(std::int64_t step, double grad_scale, bool averaged = true) {
    return {.weights = view(weights),
            .m = view(m),
            .v = view(v),
            .average = averaged ? view(average) : Vector<Real>(),
            .grad = view(grad),
            .decayed = &decayed,
            .lr = 3e-2,
            .beta1 = 0.9,
            .beta2 = 0.98,
            .eps = 1e-6,
            .decay = 0.1,
            .ema = 0.99,
            .grad_scale = grad_scale,
            .step = step};
  }

  std::int64_t n;
  std::vector<DecayRange> decayed;
  std::vector<Real> weights = random_normal<Real>(n, 1), grad = random_normal<Real>(n, 2),
                    m = random_normal<Real>(n, 3, 0.1), v = random_normal<Real>(n, 4),
                    average = random_normal<Real>(n, 5);
};

class AdamWTest : public testing::TestWithParam<std::int64_t> {};

TEST_P(AdamWTest, MatchesFloat64) {
  for_each_target([] {
    for (const std::int64_t step : {1, 7, 100000}) {
      Problem<double> truth(GetParam());
      Problem<float> plain(GetParam()), got(GetParam());
      adamw(truth.op(step, 0.3));
      ref::adamw(plain.op(step, 0.3));
      adamw(got.op(step, 0.3));
      EXPECT_TRUE(as_good_as<float>(plain.weights, got.weights, truth.weights)) << step;
      EXPECT_TRUE(as_good_as<float>(plain.m, got.m, truth.m)) << step;
      EXPECT_TRUE(as_good_as<float>(plain.v, got.v, truth.v)) << step;
      EXPECT_TRUE(as_good_as<float>(plain.average, got.average, truth.average)) << step;
    }
  });
}

TEST_P(AdamWTest, SameBitsForAnyThreads) {
  test::expect_same_for_any_threads([] {
    Problem<float> p(GetParam());
    adamw(p.op(2, 1));
    std::vector<float> all = p.weights;
    for (const auto& part : {p.m, p.v, p.average}) all.insert(all.end(), part.begin(), part.end());
    const double norm = global_norm(view(std::as_const(all)));
    all.push_back(static_cast<float>(norm));
    all.push_back(static_cast<float>(norm - static_cast<double>(static_cast<float>(norm))));
    return all;
  });
}

// Where an element stands, and where the decayed ranges cut, changes no bits.
TEST_P(AdamWTest, ElementDoesNotDependOnItsPlace) {
  for_each_target([] {
    Problem<float> whole(GetParam()), alone(GetParam());
    adamw(whole.op(3, 1));
    const auto decays = [&](std::int64_t i) {
      return std::any_of(alone.decayed.begin(), alone.decayed.end(),
                         [&](const DecayRange& r) { return i >= r.begin && i < r.end; });
    };
    const std::vector<DecayRange> yes = {{0, 1}};
    for (std::int64_t i = 0; i < std::min<std::int64_t>(alone.n, 500); ++i) {
      auto op = alone.op(3, 1);
      for (auto* part : {&op.weights, &op.m, &op.v, &op.average}) *part = {part->data + i, 1};
      op.grad = {op.grad.data + i, 1};
      op.decayed = decays(i) ? &yes : nullptr;
      adamw(op);
    }
    alone.weights.resize(static_cast<std::size_t>(std::min<std::int64_t>(alone.n, 500)));
    whole.weights.resize(alone.weights.size());
    EXPECT_TRUE(same_bits(alone.weights, whole.weights));
  });
}

TEST_P(AdamWTest, NormMatchesFloat64) {
  for_each_target([] {
    const auto x = random_normal<float>(GetParam(), 8);
    const auto exact = test::to_double(x);
    double sum = 0;
    for (const double value : exact) sum += value * value;
    EXPECT_NEAR(global_norm(view(x)) / std::sqrt(sum), 1, 1e-12);
    EXPECT_NEAR(global_norm(view(exact)) / std::sqrt(sum), 1, 1e-12);
  });
}

INSTANTIATE_TEST_SUITE_P(Sizes, AdamWTest, testing::Values(1, 7, 33, 100, 501, 100003));

// By hand: at step 1 from m = v = 0, the step is lr g / (|g| + eps) for any g.
TEST(AdamW, FirstStepHasTheSizeOfTheRate) {
  std::vector<float> w = {1, 2, 3}, m(3), v(3), average = {1, 2, 3};
  const std::vector<float> grad = {1e-3f, -50, 0};
  const std::vector<DecayRange> decayed = {{2, 3}};
  adamw({.weights = view(w),
         .m = view(m),
         .v = view(v),
         .average = view(average),
         .grad = view(grad),
         .decayed = &decayed,
         .lr = 0.25,
         .decay = 0.5,
         .ema = 0.75,
         .step = 1});
  EXPECT_NEAR(w[0], 0.75, 1e-5);
  EXPECT_NEAR(w[1], 2.25, 1e-6);
  EXPECT_NEAR(w[2], 3 - 0.25 * 0.5 * 3, 1e-6);
  EXPECT_NEAR(average[1], 2 + 0.25 * 0.25, 1e-6);
}

TEST(AdamW, WithoutAverageOrDecay) {
  Problem<float> p(40), q(40);
  auto op = p.op(2, 1, false);
  op.decayed = nullptr;
  adamw(op);
  q.decayed = {};
  adamw(q.op(2, 1));
  EXPECT_TRUE(same_bits(p.weights, q.weights));
  EXPECT_FALSE(same_bits(p.average, q.average));
}

TEST(AdamW, NormShowsWhatIsNotFinite) {
  for (const std::size_t at : {0u, 39999u, 40000u}) {
    auto x = random_normal<float>(40001, 1);
    x[at] = std::numeric_limits<float>::infinity();
    EXPECT_TRUE(std::isinf(global_norm(view(std::as_const(x))))) << at;
    x[at] = std::nanf("");
    EXPECT_TRUE(std::isnan(global_norm(view(std::as_const(x))))) << at;
  }
  const std::vector<float> huge(5, 3e38f);
  EXPECT_NEAR(global_norm(view(huge)) / (std::sqrt(5.0) * 3e38), 1, 1e-6);
  EXPECT_EQ(global_norm(Vector<const float>()), 0.0);
}

TEST(AdamW, RejectsWrongInputs) {
  Problem<float> p(10);
  auto op = p.op(0, 1);
  EXPECT_EQ(error_of([&] { adamw(op); }), "adamw: step is 0, want 1 or more");
  op = p.op(1, 1);
  op.v.size = 9;
  EXPECT_EQ(error_of([&] { adamw(op); }), "adamw: v has 9 entries, want 10");
  op = p.op(1, 1);
  op.beta2 = 1;
  EXPECT_EQ(error_of([&] { adamw(op); }), "adamw: beta is 1, want 0 <= beta < 1");
  p.decayed = {{0, 4}, {3, 6}};
  EXPECT_EQ(error_of([&] { adamw(p.op(1, 1)); }),
            "adamw: decayed range [3, 6), want it ascending within [4, 10)");
}

}  // namespace

}  // namespace longstride::ops
