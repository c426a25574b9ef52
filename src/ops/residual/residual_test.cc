#include "ops/residual/residual.h"

#include <gtest/gtest.h>

#include "as_good_as.h"
#include "ops/convert/bf16_test_util.h"
#include "ops/residual/residual_ref.h"
#include "ops/test_util.h"

namespace longstride::ops {

namespace {

using test::as_good_as, test::dot, test::error_of, test::for_each_target, test::numeric_gradient;
using test::poisoned, test::random_normal, test::relative_l2, test::same_bits;

struct Case {
  std::int64_t R, C;
  Dropout dropout;
  friend void PrintTo(const Case& c, std::ostream* out) {
    *out << c.R << "x" << c.C << " p " << c.dropout.p << " from row " << c.dropout.first_row;
  }
};

template <class Real>
struct Problem {
  explicit Problem(Case shape) : c(shape) {}

  Residual<Real> forward() {
    return {.h = matrix<const Real>(h.data(), c.R, c.C),
            .x = matrix<const Real>(x.data(), c.R, c.C),
            .y = matrix(y.data(), c.R, c.C),
            .dropout = c.dropout};
  }
  ResidualBackward<Real> backward() {
    return {.dy = matrix<const Real>(dy.data(), c.R, c.C),
            .dx = matrix(dx.data(), c.R, c.C),
            .dropout = c.dropout};
  }

  Case c;
  std::vector<Real> h = random_normal<Real>(c.R * c.C, 1), x = random_normal<Real>(c.R * c.C, 2),
                    dy = random_normal<Real>(c.R * c.C, 3), y = poisoned<Real>(c.R * c.C),
                    dx = poisoned<Real>(c.R * c.C);
};

class ResidualTest : public testing::TestWithParam<Case> {};

// Covers the mask too: a float version that drops another element is off by far more than rounding.
TEST_P(ResidualTest, MatchesFloat64) {
  for_each_target([] {
    Problem<double> truth(GetParam());
    Problem<float> plain(GetParam()), got(GetParam());
    residual(truth.forward());
    ref::residual(plain.forward());
    residual(got.forward());
    EXPECT_TRUE(as_good_as<float>(plain.y, got.y, truth.y));
    residual_backward(truth.backward());
    ref::residual_backward(plain.backward());
    residual_backward(got.backward());
    EXPECT_TRUE(as_good_as<float>(plain.dx, got.dx, truth.dx));
  });
}

TEST_P(ResidualTest, SameBitsForAnyThreads) {
  test::expect_same_for_any_threads([] {
    Problem<float> p(GetParam());
    residual(p.forward());
    residual_backward(p.backward());
    p.y.insert(p.y.end(), p.dx.begin(), p.dx.end());
    return p.y;
  });
}

// Rows in several micro-batches draw what they draw in one.
TEST_P(ResidualTest, MicroBatchesDrawTheSame) {
  for_each_target([] {
    Problem<float> whole(GetParam()), parts(GetParam());
    residual(whole.forward());
    const Residual<float> all = parts.forward();
    for (std::int64_t r = 0; r < all.x.rows;) {
      const std::int64_t rows = std::min(1 + r % 4, all.x.rows - r);
      Residual<float> op{.h = matrix(all.h.row(r), rows, all.h.cols),
                         .x = matrix(all.x.row(r), rows, all.x.cols),
                         .y = matrix(all.y.row(r), rows, all.y.cols),
                         .dropout = all.dropout};
      op.dropout.first_row += r;
      residual(op);
      r += rows;
    }
    EXPECT_TRUE(same_bits(parts.y, whole.y));
  });
}

// Branches in bf16: x is widened exactly, dx is rounded.
TEST_P(ResidualTest, Bf16MatchesFloat) {
  for_each_target([] {
    const std::int64_t R = GetParam().R, C = GetParam().C;
    Problem<float> p(GetParam()), narrow(GetParam());
    p.x = test::random_bf16<float>(R * C, 2);
    residual(p.forward());
    residual_backward(p.backward());
    const auto x = test::to_bf16(p.x);
    const auto op = narrow.forward();
    residual(Residual<float, bf16>{
        .h = op.h, .x = matrix(x.data(), R, C), .y = op.y, .dropout = op.dropout});
    EXPECT_TRUE(same_bits(narrow.y, p.y));
    test::GuardedBf16 dx(R * C);
    const auto back = narrow.backward();
    residual_backward(ResidualBackward<float, bf16>{
        .dy = back.dy, .dx = matrix(dx.data(), R, C), .dropout = back.dropout});
    EXPECT_TRUE(same_bits(dx.floats(), test::to_float(test::to_bf16(p.dx))));
    EXPECT_TRUE(dx.untouched_behind());
  });
}

TEST_P(ResidualTest, Bf16SameBitsForAnyThreads) {
  test::expect_same_for_any_threads([] {
    const std::int64_t R = GetParam().R, C = GetParam().C;
    Problem<float> p(GetParam());
    const auto x = test::to_bf16(p.x);
    const auto op = p.forward();
    residual(Residual<float, bf16>{
        .h = op.h, .x = matrix(x.data(), R, C), .y = op.y, .dropout = op.dropout});
    test::GuardedBf16 dx(R * C);
    residual_backward(ResidualBackward<float, bf16>{
        .dy = p.backward().dy, .dx = matrix(dx.data(), R, C), .dropout = op.dropout});
    for (const float value : dx.floats()) p.y.push_back(value);
    return p.y;
  });
}

INSTANTIATE_TEST_SUITE_P(
    Shapes, ResidualTest,
    testing::Values(
        Case{1, 1, {}}, Case{7, 33, {}}, Case{3, 5, {.p = 0.5, .seed = 1}},
        Case{9, 67, {.p = 0.25, .seed = 7, .step = 3, .lane = 5, .first_row = 11}},
        Case{2, 200, {.p = 0.9, .seed = ~std::uint64_t{0}, .step = 1u << 20, .lane = 127}},
        Case{129, 511, {.p = 0.1, .seed = 1u << 31, .step = 99, .lane = 9, .first_row = 3}},
        // The high word of a draw's index changes within the rows.
        Case{5, 77, {.p = 0.5, .seed = 6, .first_row = 223'115'183}},
        // The element index needs more than 34 bits, and the step more than 32.
        Case{5, 77, {.p = 0.5, .seed = 5, .step = 5'000'000'000, .first_row = 1'000'000'000'000}}));

class ResidualGradientTest : public ResidualTest {};

TEST_P(ResidualGradientTest, IsTheDerivative) {
  Problem<double> p(GetParam());
  const auto dx = numeric_gradient(p.x, [&] {
    residual(p.forward());
    return dot(p.y, p.dy);
  });
  residual_backward(p.backward());
  EXPECT_LE(relative_l2(p.dx, dx), 1e-8);
}

INSTANTIATE_TEST_SUITE_P(Shapes, ResidualGradientTest,
                         testing::Values(Case{1, 1, {}}, Case{7, 33, {}},
                                         Case{3, 5, {.p = 0.5, .seed = 1}},
                                         Case{9, 31, {.p = 0.25, .step = 3, .first_row = 11}},
                                         Case{2, 100, {.p = 0.9, .seed = 5, .lane = 127}}));

TEST(Residual, KeepsTheRightShare) {
  for (const double p : {0.1, 0.5, 0.8}) {
    Problem<float> problem({1000, 100, {.p = p, .seed = 3}});
    residual_backward(problem.backward());
    const auto dropped = std::count(problem.dx.begin(), problem.dx.end(), 0.0f);
    const double sigma = std::sqrt(100000 * p * (1 - p));
    EXPECT_NEAR(static_cast<double>(dropped), 100000 * p, 5 * sigma) << p;
  }
}

TEST(Residual, MaskDependsOnSeedStepAndLane) {
  const auto mask = [](const Dropout& dropout) {
    Problem<float> p({10, 100, dropout});
    residual_backward(p.backward());
    for (float& v : p.dx) v = v != 0;
    return p.dx;
  };
  const Dropout base{.p = 0.5, .seed = 1, .step = 2, .lane = 3};
  Dropout seed = base, step = base, lane = base;
  seed.seed = 2, step.step = 3, lane.lane = 4;
  for (const Dropout& other : {seed, step, lane}) {
    const double away = relative_l2(mask(other), mask(base));
    EXPECT_GT(away, 0.8);  // independent masks of one half: sqrt(0.5 / 0.5)
    EXPECT_LT(away, 1.2);
  }
}

// A branch that overflowed does not reach the stream where its element is dropped.
TEST(Residual, DroppedElementsAreZeroWhateverTheyWere) {
  for_each_target([] {
    Problem<float> p({4, 50, {.p = 0.5, .seed = 1}});
    p.x = poisoned<float>(200);
    residual(p.forward());
    std::int64_t kept = 0;
    for (std::size_t i = 0; i < 200; ++i) {
      const bool keeps = ref::dropout_keeps(p.c.dropout, static_cast<std::int64_t>(i));
      EXPECT_EQ(std::isnan(p.y[i]), keeps) << i;
      EXPECT_TRUE(keeps || p.y[i] == p.h[i]) << i;
      kept += keeps;
    }
    EXPECT_GT(kept, 50);
  });
}

TEST(Residual, InPlace) {
  Problem<float> p({9, 31, {.p = 0.25, .seed = 2}}), q(p.c);
  residual(p.forward());
  auto op = q.forward();
  op.y.data = q.h.data();
  residual(op);
  EXPECT_TRUE(same_bits(q.h, p.y));
}

TEST(Residual, RejectsWrongInputs) {
  Problem<float> p({3, 4, {}});
  auto op = p.forward();
  op.dropout.p = 1;
  EXPECT_EQ(error_of([&] { residual(op); }), "residual: dropout probability is 1, want 0 <= p < 1");
  op = p.forward();
  op.h.stride = 5;
  EXPECT_EQ(error_of([&] { residual(op); }), "residual: h has a row stride of 5, want 4");
  op = p.forward();
  op.y.cols = 3;
  EXPECT_EQ(error_of([&] { residual(op); }), "residual: y is 3x3, want 3x4");
  auto back = p.backward();
  back.dropout.first_row = -1;
  EXPECT_EQ(error_of([&] { residual_backward(back); }),
            "residual_backward: first_row is -1, want 0 or more");
}

}  // namespace

}  // namespace longstride::ops
