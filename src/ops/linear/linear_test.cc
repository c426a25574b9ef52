#include "ops/linear/linear.h"

#include <gtest/gtest.h>

#include "as_good_as.h"
#include "ops/linear/linear_ref.h"
#include "ops/test_util.h"

namespace longstride::ops {

namespace {

using test::as_good_as, test::dot, test::error_of, test::for_each_target, test::numeric_gradient;
using test::poisoned, test::random_normal, test::relative_l2, test::same_bits, test::view;

struct Case {
  std::int64_t R, K, N;
  friend void PrintTo(const Case& c, std::ostream* out) { *out << c.R << "x" << c.K << "x" << c.N; }
};

// Inputs and outputs of one case in one precision; rows of x and y have a gap of `gap` behind them.
template <class Real>
struct Problem {
  explicit Problem(Case shape, std::int64_t gap_ = 0) : c(shape), gap(gap_) {}

  Linear<Real> forward(bool biased = true) {
    return {.x = {x.data(), c.R, c.K, c.K + gap},
            .weight = matrix<const Real>(weight.data(), c.K, c.N),
            .bias = biased ? Vector<const Real>(view(bias)) : Vector<const Real>(),
            .y = {y.data(), c.R, c.N, c.N + gap}};
  }
  LinearBackward<Real> backward(bool add_to_dx = false) {
    return {.x = {x.data(), c.R, c.K, c.K + gap},
            .weight = matrix<const Real>(weight.data(), c.K, c.N),
            .dy = {dy.data(), c.R, c.N, c.N + gap},
            .dx = {dx.data(), c.R, c.K, c.K + gap},
            .add_to_dx = add_to_dx,
            .dweight = matrix(dweight.data(), c.K, c.N),
            .dbias = view(dbias)};
  }

  Case c;
  std::int64_t gap;
  std::vector<Real> x = random_normal<Real>(c.R * (c.K + gap), 1),
                    weight = random_normal<Real>(c.K * c.N, 2), bias = random_normal<Real>(c.N, 3),
                    dy = random_normal<Real>(c.R * (c.N + gap), 4),
                    y = poisoned<Real>(c.R * (c.N + gap)), dx = poisoned<Real>(c.R * (c.K + gap)),
                    dweight = random_normal<Real>(c.K * c.N, 5),
                    dbias = random_normal<Real>(c.N, 6);
};

class LinearTest : public testing::TestWithParam<Case> {};

TEST_P(LinearTest, ForwardMatchesFloat64) {
  for (const bool biased : {false, true}) {
    Problem<double> truth(GetParam());
    Problem<float> plain(GetParam()), got(GetParam());
    linear_forward(truth.forward(biased));
    ref::linear_forward(plain.forward(biased));
    linear_forward(got.forward(biased));
    EXPECT_TRUE(as_good_as<float>(plain.y, got.y, truth.y));
  }
}

TEST_P(LinearTest, RowsMatchFloat64) {
  for_each_target([] {
    for (const bool biased : {false, true}) {
      Problem<double> truth(GetParam());
      Problem<float> plain(GetParam()), got(GetParam());
      linear_rows(truth.forward(biased));
      ref::linear_forward(plain.forward(biased));
      linear_rows(got.forward(biased));
      EXPECT_TRUE(as_good_as<float>(plain.y, got.y, truth.y));
    }
  });
}

TEST_P(LinearTest, BackwardMatchesFloat64) {
  for (const bool add : {false, true}) {
    Problem<double> truth(GetParam());
    Problem<float> plain(GetParam()), got(GetParam());
    if (add) {
      truth.dx = random_normal<double>(GetParam().R * GetParam().K, 7);
      plain.dx = got.dx = random_normal<float>(GetParam().R * GetParam().K, 7);
    }
    linear_backward(truth.backward(add));
    ref::linear_backward(plain.backward(add));
    linear_backward(got.backward(add));
    EXPECT_TRUE(as_good_as<float>(plain.dx, got.dx, truth.dx));
    EXPECT_TRUE(as_good_as<float>(plain.dweight, got.dweight, truth.dweight));
    EXPECT_TRUE(as_good_as<float>(plain.dbias, got.dbias, truth.dbias));
  }
}

TEST_P(LinearTest, SameBitsForAnyThreads) {
  test::expect_same_for_any_threads([] {
    Problem<float> p(GetParam());
    linear_forward(p.forward());
    linear_backward(p.backward());
    std::vector<float> all = p.y;
    for (const auto& part : {p.dx, p.dweight, p.dbias})
      all.insert(all.end(), part.begin(), part.end());
    linear_rows(p.forward());
    all.insert(all.end(), p.y.begin(), p.y.end());
    return all;
  });
}

// Rows alone, the first few rows, and a column range of W alone give the bits of the whole.
TEST_P(LinearTest, RowsDoNotDependOnTheCall) {
  for_each_target([] {
    const auto [R, K, N] = GetParam();
    Problem<float> whole(GetParam()), parts(GetParam());
    linear_rows(whole.forward());
    const Linear<float> op = parts.forward();
    for (std::int64_t r = 0; r < R;) {
      const std::int64_t rows = std::min(R - r, 1 + r % 5), left = N / 3;
      for (const auto& [col, cols] : {std::pair{std::int64_t{0}, left}, {left, N - left}})
        if (cols > 0)
          linear_rows({.x = {op.x.row(r), rows, K, K},
                       .weight = {op.weight.data + col, K, cols, N},
                       .bias = {op.bias.data + col, cols},
                       .y = {op.y.row(r) + col, rows, cols, N}});
      r += rows;
    }
    EXPECT_TRUE(same_bits(parts.y, whole.y));
  });
}

INSTANTIATE_TEST_SUITE_P(Shapes, LinearTest,
                         testing::Values(Case{1, 1, 1}, Case{1, 70, 33}, Case{2, 3, 5},
                                         Case{37, 129, 77}, Case{5, 300, 200}, Case{130, 64, 16},
                                         Case{97, 257, 131}, Case{1, 300, 530}, Case{700, 40, 260},
                                         Case{1200, 9, 1540}));

class LinearGradientTest : public testing::TestWithParam<Case> {};

TEST_P(LinearGradientTest, IsTheDerivative) {
  Problem<double> p(GetParam());
  const auto loss = [&] {
    linear_forward(p.forward());
    return dot(p.y, p.dy);
  };
  const auto dx = numeric_gradient(p.x, loss), dweight = numeric_gradient(p.weight, loss),
             dbias = numeric_gradient(p.bias, loss);
  p.dweight.assign(p.dweight.size(), 0);
  p.dbias.assign(p.dbias.size(), 0);
  linear_backward(p.backward());
  EXPECT_LE(relative_l2(p.dx, dx), 1e-8);
  EXPECT_LE(relative_l2(p.dweight, dweight), 1e-8);
  EXPECT_LE(relative_l2(p.dbias, dbias), 1e-8);
}

INSTANTIATE_TEST_SUITE_P(Shapes, LinearGradientTest,
                         testing::Values(Case{1, 1, 1}, Case{3, 2, 5}, Case{7, 9, 4},
                                         Case{2, 13, 3}, Case{11, 5, 6}));

// What lies between the rows of a strided matrix stays as it was.
TEST(Linear, TouchesNothingBetweenRows) {
  const Case shape{23, 19, 37};
  Problem<float> wide(shape, 3);
  const auto untouched = [&](const std::vector<float>& m, std::int64_t cols) {
    for (std::int64_t r = 0; r < shape.R; ++r)
      for (std::int64_t c = cols; c < cols + wide.gap; ++c)
        if (!std::isnan(m[static_cast<std::size_t>(r * (cols + wide.gap) + c)])) return false;
    return true;
  };
  const auto finite = [&](const std::vector<float>& m) {
    return std::count_if(m.begin(), m.end(), [](float v) { return std::isfinite(v); });
  };
  linear_forward(wide.forward());
  EXPECT_TRUE(untouched(wide.y, shape.N));
  EXPECT_EQ(finite(wide.y), shape.R * shape.N);
  wide.y = poisoned<float>(static_cast<std::int64_t>(wide.y.size()));
  linear_rows(wide.forward());
  EXPECT_TRUE(untouched(wide.y, shape.N));
  EXPECT_EQ(finite(wide.y), shape.R * shape.N);
  linear_backward(wide.backward());
  EXPECT_TRUE(untouched(wide.dx, shape.K));
  EXPECT_EQ(finite(wide.dx), shape.R * shape.K);
}

TEST(Linear, EmptyDimensions) {
  Problem<float> none({0, 3, 2});
  const auto dweight = none.dweight, dbias = none.dbias;
  linear_forward(none.forward());
  linear_rows(none.forward());
  linear_backward(none.backward());
  EXPECT_TRUE(same_bits(none.dweight, dweight));
  EXPECT_TRUE(same_bits(none.dbias, dbias));

  Problem<float> bias_only({3, 0, 2});
  linear_forward(bias_only.forward());
  EXPECT_EQ(bias_only.y[5], bias_only.bias[1]);

  Problem<float> no_outputs({3, 2, 0});
  linear_forward(no_outputs.forward());
  linear_rows(no_outputs.forward());
  linear_backward(no_outputs.backward());
  EXPECT_EQ(no_outputs.dx, std::vector<float>(6, 0.0f));
}

TEST(Linear, BackwardWithoutOptionalOutputs) {
  Problem<float> p({9, 4, 5}), all({9, 4, 5});
  auto op = p.backward();
  op.dx = {};
  op.dbias = {};
  linear_backward(op);
  linear_backward(all.backward());
  EXPECT_TRUE(same_bits(p.dweight, all.dweight));
  EXPECT_TRUE(std::isnan(p.dx[0]));
}

TEST(Linear, RejectsWrongShapes) {
  Problem<float> p({3, 4, 5});
  auto op = p.forward();
  op.weight.rows = 3;
  EXPECT_EQ(error_of([&] { linear_forward(op); }), "linear: weight is 3x5, want 4x5");
  op = p.forward();
  op.bias.size = 4;
  EXPECT_EQ(error_of([&] { linear_rows(op); }), "linear: bias has 4 entries, want 5");
  op = p.forward();
  op.y.rows = 2;
  EXPECT_EQ(error_of([&] { linear_forward(op); }), "linear: y is 2x5, want 3x5");
  op = p.forward();
  op.y.stride = 4;
  EXPECT_EQ(error_of([&] { linear_forward(op); }),
            "linear: y has a row stride of 4, want at least 5");
  op = p.forward();
  op.x.data = nullptr;
  EXPECT_EQ(error_of([&] { linear_forward(op); }), "linear: x of 3x4 has no memory");
  auto back = p.backward();
  back.dweight.cols = back.dweight.stride = 4;
  EXPECT_EQ(error_of([&] { linear_backward(back); }), "linear_backward: dweight is 4x4, want 4x5");
}

}  // namespace

}  // namespace longstride::ops
