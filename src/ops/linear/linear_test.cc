#include "ops/linear/linear.h"

#include <gtest/gtest.h>

#include "as_good_as.h"
#include "ops/linear/linear_ref.h"
#include "ops/test_util.h"

namespace longstride::ops {

namespace {

using test::as_good_as, test::dot, test::error_of, test::for_each_target, test::numeric_gradient;
using test::random_normal, test::relative_l2, test::same_bits, test::view;

struct Case {
  std::int64_t R, K, N;
  friend void PrintTo(const Case& c, std::ostream* out) { *out << c.R << "x" << c.K << "x" << c.N; }
};

// Normal numbers that bf16 holds exactly, where wanted, so that all precisions get the same.
template <class T>
std::vector<T> inputs(std::int64_t size, std::uint64_t seed, bool as_bf16) {
  std::vector<T> values;
  for (const float v : random_normal<float>(size, seed))
    values.push_back(static_cast<T>(as_bf16 ? static_cast<float>(bf16(v)) : v));
  return values;
}

template <class T>
std::vector<T> poison(std::int64_t size) {
  return std::vector<T>(static_cast<std::size_t>(size), static_cast<T>(std::nanf("")));
}

template <class T>
std::vector<float> floats(const std::vector<T>& values) {
  std::vector<float> out;
  for (const T v : values) out.push_back(static_cast<float>(v));
  return out;
}

// As if the results had been stored as T.
template <class T>
void store_as(std::vector<float>& values) {
  for (float& v : values) v = static_cast<float>(static_cast<T>(v));
}

// Inputs and outputs of one case, operands of type A, y and dx of type Y; rows of x and y have a
// gap of `gap` behind them.
template <class A, class Y = A>
struct Problem {
  explicit Problem(Case shape, std::int64_t gap_ = 0, bool as_bf16 = std::is_same_v<A, bf16>)
      : c(shape),
        gap(gap_),
        x(inputs<A>(c.R * (c.K + gap), 1, as_bf16)),
        weight(inputs<A>(c.K * c.N, 2, as_bf16)),
        dy(inputs<A>(c.R * (c.N + gap), 4, as_bf16)) {}

  Linear<A, Y> forward(bool biased = true) {
    return {.x = {x.data(), c.R, c.K, c.K + gap},
            .weight = matrix<const A>(weight.data(), c.K, c.N),
            .bias = biased ? Vector<const Sum>(view(bias)) : Vector<const Sum>(),
            .y = {y.data(), c.R, c.N, c.N + gap}};
  }
  LinearBackward<A, Y> backward(bool add_to_dx = false) {
    return {.x = {x.data(), c.R, c.K, c.K + gap},
            .weight = matrix<const A>(weight.data(), c.K, c.N),
            .dy = {dy.data(), c.R, c.N, c.N + gap},
            .dx = {dx.data(), c.R, c.K, c.K + gap},
            .add_to_dx = add_to_dx,
            .dweight = matrix(dweight.data(), c.K, c.N),
            .dbias = view(dbias)};
  }

  using Sum = Accumulated<A>;
  Case c;
  std::int64_t gap;
  std::vector<A> x, weight, dy;
  std::vector<Sum> bias = random_normal<Sum>(c.N, 3);
  std::vector<Y> y = poison<Y>(c.R * (c.N + gap)), dx = poison<Y>(c.R * (c.K + gap));
  std::vector<Sum> dweight = random_normal<Sum>(c.K * c.N, 5), dbias = random_normal<Sum>(c.N, 6);
};

// Against float64 on the same values, with every instruction set; the plain formula sums in float
// and rounds its result to Y.
template <class A, class Y>
void forward_matches(Case shape) {
  constexpr bool kRounded = std::is_same_v<A, bf16>;
  Problem<double> truth(shape, 0, kRounded);
  Problem<float> plain(shape, 0, kRounded);
  const Problem<A, Y> fresh(shape);
  for (const bool biased : {false, true}) {
    linear_forward(truth.forward(biased));
    ref::linear_forward(plain.forward(biased));
    store_as<Y>(plain.y);
    for_each_target([&] {
      Problem<A, Y> got = fresh;
      linear_forward(got.forward(biased));
      EXPECT_TRUE(as_good_as<float>(plain.y, floats(got.y), truth.y));
    });
  }
}

template <class A, class Y>
void backward_matches(Case shape) {
  constexpr bool kRounded = std::is_same_v<A, bf16>;
  const auto start = random_normal<float>(shape.R * shape.K, 7);
  const Problem<double> exact(shape, 0, kRounded);
  const Problem<float> simple(shape, 0, kRounded);
  const Problem<A, Y> fresh(shape);
  for (const bool add : {false, true}) {
    if (add && std::is_same_v<Y, bf16>) continue;
    Problem<double> truth = exact;
    Problem<float> plain = simple;
    truth.dx.assign(start.begin(), start.end());
    plain.dx = start;
    linear_backward(truth.backward(add));
    ref::linear_backward(plain.backward(add));
    store_as<Y>(plain.dx);
    for_each_target([&] {
      Problem<A, Y> got = fresh;
      if constexpr (std::is_same_v<Y, float>)
        if (add) got.dx = start;
      linear_backward(got.backward(add));
      EXPECT_TRUE(as_good_as<float>(plain.dx, floats(got.dx), truth.dx));
      EXPECT_TRUE(as_good_as<float>(plain.dweight, got.dweight, truth.dweight));
      EXPECT_TRUE(as_good_as<float>(plain.dbias, got.dbias, truth.dbias));
    });
  }
}

template <class A, class Y>
std::vector<float> all_outputs(Case shape) {
  Problem<A, Y> p(shape);
  linear_forward(p.forward());
  linear_backward(p.backward());
  std::vector<float> all = floats(p.y);
  for (const auto& part : {floats(p.dx), p.dweight, p.dbias})
    all.insert(all.end(), part.begin(), part.end());
  return all;
}

class LinearTest : public testing::TestWithParam<Case> {};

TEST_P(LinearTest, ForwardMatchesFloat64) {
  forward_matches<float, float>(GetParam());
  forward_matches<bf16, bf16>(GetParam());
  forward_matches<bf16, float>(GetParam());
}

TEST_P(LinearTest, BackwardMatchesFloat64) {
  backward_matches<float, float>(GetParam());
  backward_matches<bf16, bf16>(GetParam());
  backward_matches<bf16, float>(GetParam());
}

TEST_P(LinearTest, SameBitsForAnyThreads) {
  test::expect_same_for_any_threads([] {
    std::vector<float> all = all_outputs<float, float>(GetParam());
    for (const auto& more :
         {all_outputs<bf16, bf16>(GetParam()), all_outputs<bf16, float>(GetParam())})
      all.insert(all.end(), more.begin(), more.end());
    return all;
  });
}

// Rows alone, the first few rows, and a column range of W alone give the bits of the whole: calls
// with few rows and with many take different kernels.
TEST_P(LinearTest, RowsDoNotDependOnTheCall) {
  const Problem<float> fresh(GetParam());
  for_each_target([&] {
    const auto [R, K, N] = GetParam();
    Problem<float> whole = fresh, parts = fresh;
    linear_forward(whole.forward());
    const Linear<float> op = parts.forward();
    for (std::int64_t r = 0; r < R;) {
      const std::int64_t rows = std::min(R - r, 1 + r % 5), left = N / 3;
      for (const auto& [col, cols] : {std::pair{std::int64_t{0}, left}, {left, N - left}})
        if (cols > 0)
          linear_forward(Linear<float>{.x = {op.x.row(r), rows, K, K},
                                       .weight = {op.weight.data + col, K, cols, N},
                                       .bias = {op.bias.data + col, cols},
                                       .y = {op.y.row(r) + col, rows, cols, N}});
      r += rows;
    }
    EXPECT_TRUE(same_bits(parts.y, whole.y));
  });
}

// Beside odd ones: more than one block of rows, of the inner dimension and of columns, parts of the
// rows in dweight, whole blocks for a library.
INSTANTIATE_TEST_SUITE_P(Shapes, LinearTest,
                         testing::Values(Case{1, 1, 1}, Case{1, 70, 33}, Case{2, 3, 5},
                                         Case{37, 129, 77}, Case{5, 300, 200}, Case{130, 64, 16},
                                         Case{97, 257, 131}, Case{1, 290, 330}, Case{600, 9, 260},
                                         Case{270, 280, 268}, Case{384, 64, 128}));

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

// Rows with gaps give what rows without give, and what lies in the gaps stays as it was. The same
// bits for float; oneDNN may sum products of bf16 in another order where rows lie apart.
template <class A, class Y>
void expect_gaps_untouched(Case shape) {
  Problem<A, Y> wide(shape, 3), tight(shape);
  for (std::int64_t r = 0; r < shape.R; ++r) {
    std::copy_n(&tight.x[static_cast<std::size_t>(r * shape.K)], shape.K,
                &wide.x[static_cast<std::size_t>(r * (shape.K + 3))]);
    std::copy_n(&tight.dy[static_cast<std::size_t>(r * shape.N)], shape.N,
                &wide.dy[static_cast<std::size_t>(r * (shape.N + 3))]);
  }
  linear_forward(wide.forward());
  linear_forward(tight.forward());
  linear_backward(wide.backward());
  linear_backward(tight.backward());
  const auto check = [&](const std::vector<Y>& with, const std::vector<Y>& without,
                         std::int64_t cols) {
    const std::vector<float> got = floats(with), want = floats(without);
    for (std::int64_t r = 0; r < shape.R; ++r)
      for (std::int64_t c = 0; c < cols + 3; ++c) {
        const float value = got[static_cast<std::size_t>(r * (cols + 3) + c)];
        if (c < cols) {
          const float without_gap = want[static_cast<std::size_t>(r * cols + c)];
          const float slack = std::is_same_v<A, float> ? 0 : std::abs(without_gap) / 128 + 1e-4f;
          ASSERT_NEAR(value, without_gap, slack) << r << ", " << c;
        } else {
          ASSERT_TRUE(std::isnan(value)) << r << ", " << c;
        }
      }
  };
  check(wide.y, tight.y, shape.N);
  check(wide.dx, tight.dx, shape.K);
}

TEST(Linear, TouchesNothingBetweenRows) {
  for (const Case& shape : {Case{23, 19, 37}, Case{150, 300, 40}}) {
    expect_gaps_untouched<float, float>(shape);
    expect_gaps_untouched<bf16, bf16>(shape);
    expect_gaps_untouched<bf16, float>(shape);
  }
}

template <class A, class Y>
void expect_empty_dimensions() {
  Problem<A, Y> none({0, 3, 2});
  const auto dweight = none.dweight, dbias = none.dbias;
  linear_forward(none.forward());
  linear_backward(none.backward());
  EXPECT_TRUE(same_bits(none.dweight, dweight));
  EXPECT_TRUE(same_bits(none.dbias, dbias));

  for (const std::int64_t R : {3, 300}) {
    Problem<A, Y> bias_only({R, 0, 2}), summed({R, 1, 2});
    linear_forward(bias_only.forward());
    EXPECT_EQ(floats(bias_only.y)[5], static_cast<float>(static_cast<Y>(bias_only.bias[1])));
    linear_forward(bias_only.forward(false));
    EXPECT_EQ(floats(bias_only.y)[5], 0.0f);
    linear_backward(bias_only.backward());
    linear_backward(summed.backward());
    EXPECT_LE(relative_l2(bias_only.dbias, summed.dbias), 1e-6);

    Problem<A, Y> no_outputs({R, 2, 0});
    linear_forward(no_outputs.forward());
    linear_backward(no_outputs.backward());
    EXPECT_EQ(floats(no_outputs.dx), std::vector<float>(static_cast<std::size_t>(2 * R), 0.0f));
  }
}

TEST(Linear, EmptyDimensions) {
  expect_empty_dimensions<float, float>();
  expect_empty_dimensions<bf16, bf16>();
  expect_empty_dimensions<bf16, float>();
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
  EXPECT_EQ(error_of([&] { linear_forward(op); }), "linear: bias has 4 entries, want 5");
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
  Problem<bf16> half({3, 4, 5});
  EXPECT_EQ(error_of([&] { linear_backward(half.backward(true)); }),
            "linear_backward: add_to_dx is set for a dx of bf16, want a dx of float");
  auto back = p.backward();
  back.dweight.cols = back.dweight.stride = 4;
  EXPECT_EQ(error_of([&] { linear_backward(back); }), "linear_backward: dweight is 4x4, want 4x5");
}

}  // namespace

}  // namespace longstride::ops
