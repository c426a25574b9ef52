#include "ops/layer_norm/layer_norm.h"

#include <gtest/gtest.h>

#include "as_good_as.h"
#include "ops/convert/bf16_test_util.h"
#include "ops/layer_norm/layer_norm_ref.h"
#include "ops/test_util.h"

namespace longstride::ops {

namespace {

using test::as_good_as, test::dot, test::error_of, test::for_each_target, test::numeric_gradient;
using test::poisoned, test::random_normal, test::relative_l2, test::same_bits, test::view;

struct Case {
  std::int64_t R, C;
  double offset;  // of x: a one-pass variance would lose all its digits there
  friend void PrintTo(const Case& c, std::ostream* out) {
    *out << c.R << "x" << c.C << " around " << c.offset;
  }
};

template <class Real>
struct Problem {
  explicit Problem(Case shape) : c(shape) {}

  LayerNorm<Real> forward() {
    return {.x = matrix<const Real>(x.data(), c.R, c.C),
            .gain = view(gain),
            .bias = view(bias),
            .y = matrix(y.data(), c.R, c.C),
            .mean = view(mean),
            .rstd = view(rstd)};
  }
  LayerNormBackward<Real> backward() {
    return {.x = matrix<const Real>(x.data(), c.R, c.C),
            .gain = view(gain),
            .mean = view(mean),
            .rstd = view(rstd),
            .dy = matrix<const Real>(dy.data(), c.R, c.C),
            .dx = matrix(dx.data(), c.R, c.C),
            .dgain = view(dgain),
            .dbias = view(dbias)};
  }

  Case c;
  std::vector<Real> x = random_normal<Real>(c.R * c.C, 1, 1, c.offset),
                    gain = random_normal<Real>(c.C, 2, 1, 1), bias = random_normal<Real>(c.C, 3),
                    dy = random_normal<Real>(c.R * c.C, 4), y = poisoned<Real>(c.R * c.C),
                    mean = poisoned<Real>(c.R), rstd = poisoned<Real>(c.R),
                    dx = random_normal<Real>(c.R * c.C, 5), dgain = random_normal<Real>(c.C, 6),
                    dbias = random_normal<Real>(c.C, 7);
};

class LayerNormTest : public testing::TestWithParam<Case> {};

TEST_P(LayerNormTest, MatchesFloat64) {
  for_each_target([] {
    Problem<double> truth(GetParam());
    Problem<float> plain(GetParam()), got(GetParam());
    truth.c = GetParam();
    auto exact = truth.forward();
    exact.eps = static_cast<double>(1e-5f);
    layer_norm(exact);
    ref::layer_norm(plain.forward());
    layer_norm(got.forward());
    EXPECT_TRUE(as_good_as<float>(plain.y, got.y, truth.y));
    EXPECT_TRUE(as_good_as<float>(plain.mean, got.mean, truth.mean));
    EXPECT_TRUE(as_good_as<float>(plain.rstd, got.rstd, truth.rstd));

    // Backward is compared from the same saved mean and rstd: its own rounding, not forward's.
    truth.mean = test::to_double(plain.mean);
    truth.rstd = test::to_double(plain.rstd);
    got.mean = plain.mean;
    got.rstd = plain.rstd;
    layer_norm_backward(truth.backward());
    ref::layer_norm_backward(plain.backward());
    layer_norm_backward(got.backward());
    EXPECT_TRUE(as_good_as<float>(plain.dx, got.dx, truth.dx));
    EXPECT_TRUE(as_good_as<float>(plain.dgain, got.dgain, truth.dgain));
    EXPECT_TRUE(as_good_as<float>(plain.dbias, got.dbias, truth.dbias));
  });
}

TEST_P(LayerNormTest, SameBitsForAnyThreads) {
  test::expect_same_for_any_threads([] {
    Problem<float> p(GetParam());
    layer_norm(p.forward());
    layer_norm_backward(p.backward());
    std::vector<float> all = p.y;
    for (const auto& part : {p.mean, p.rstd, p.dx, p.dgain, p.dbias})
      all.insert(all.end(), part.begin(), part.end());
    return all;
  });
}

TEST_P(LayerNormTest, RowsDoNotDependOnTheCall) {
  for_each_target([] {
    const auto [R, C, offset] = GetParam();
    Problem<float> whole(GetParam()), alone(GetParam());
    layer_norm(whole.forward());
    layer_norm_backward(whole.backward());
    for (std::int64_t r = 0; r < R; ++r) {
      auto op = alone.forward();
      layer_norm({.x = matrix(op.x.row(r), 1, C),
                  .gain = op.gain,
                  .bias = op.bias,
                  .y = matrix(op.y.row(r), 1, C),
                  .mean = {op.mean.data + r, 1},
                  .rstd = {op.rstd.data + r, 1}});
      auto back = alone.backward();
      layer_norm_backward({.x = matrix(back.x.row(r), 1, C),
                           .gain = back.gain,
                           .mean = {back.mean.data + r, 1},
                           .rstd = {back.rstd.data + r, 1},
                           .dy = matrix(back.dy.row(r), 1, C),
                           .dx = matrix(back.dx.row(r), 1, C),
                           .dgain = back.dgain,
                           .dbias = back.dbias});
    }
    EXPECT_TRUE(same_bits(alone.y, whole.y));
    EXPECT_TRUE(same_bits(alone.dx, whole.dx));
  });
}

// y in bf16: the rounding of the float result, the statistics untouched by it.
TEST_P(LayerNormTest, Bf16IsTheRoundedFloat) {
  for_each_target([] {
    const auto [R, C, offset] = GetParam();
    Problem<float> p(GetParam()), rounded(GetParam());
    layer_norm(p.forward());
    test::GuardedBf16 y(R * C);
    const auto op = rounded.forward();
    layer_norm(LayerNorm<float, bf16>{.x = op.x,
                                      .gain = op.gain,
                                      .bias = op.bias,
                                      .y = matrix(y.data(), R, C),
                                      .mean = op.mean,
                                      .rstd = op.rstd});
    EXPECT_TRUE(same_bits(y.floats(), test::to_float(test::to_bf16(p.y))));
    EXPECT_TRUE(same_bits(rounded.mean, p.mean));
    EXPECT_TRUE(same_bits(rounded.rstd, p.rstd));
    EXPECT_TRUE(y.untouched_behind());
  });
}

TEST_P(LayerNormTest, Bf16SameBitsForAnyThreads) {
  test::expect_same_for_any_threads([] {
    Problem<float> p(GetParam());
    const auto op = p.forward();
    test::GuardedBf16 y(p.c.R * p.c.C);
    layer_norm(LayerNorm<float, bf16>{.x = op.x,
                                      .gain = op.gain,
                                      .bias = op.bias,
                                      .y = matrix(y.data(), p.c.R, p.c.C),
                                      .mean = {},
                                      .rstd = {}});
    return y.floats();
  });
}

INSTANTIATE_TEST_SUITE_P(Shapes, LayerNormTest,
                         testing::Values(Case{1, 1, 0}, Case{3, 5, 0}, Case{7, 33, 0},
                                         Case{200, 128, 0}, Case{65, 1024, -3}, Case{8, 257, 100},
                                         Case{5, 96, 1e4}, Case{130, 15, 1e4}));

class LayerNormGradientTest : public testing::TestWithParam<Case> {};

TEST_P(LayerNormGradientTest, IsTheDerivative) {
  Problem<double> p(GetParam());
  const auto loss = [&] {
    layer_norm(p.forward());
    return dot(p.y, p.dy);
  };
  const auto dx = numeric_gradient(p.x, loss, 1e-4), dgain = numeric_gradient(p.gain, loss),
             dbias = numeric_gradient(p.bias, loss);
  for (auto* zero : {&p.dx, &p.dgain, &p.dbias}) zero->assign(zero->size(), 0);
  loss();
  layer_norm_backward(p.backward());
  EXPECT_LE(relative_l2(p.dx, dx), 1e-8);
  EXPECT_LE(relative_l2(p.dgain, dgain), 1e-8);
  EXPECT_LE(relative_l2(p.dbias, dbias), 1e-8);
}

INSTANTIATE_TEST_SUITE_P(Shapes, LayerNormGradientTest,
                         testing::Values(Case{1, 7, 0}, Case{3, 5, 0}, Case{7, 33, 1},
                                         Case{2, 16, 10}, Case{5, 9, -2}));

TEST(LayerNorm, InPlaceAndWithoutStatistics) {
  Problem<float> p({9, 50, 1}), in_place({9, 50, 1});
  layer_norm(p.forward());
  auto op = in_place.forward();
  op.y.data = in_place.x.data();
  op.mean = op.rstd = {};
  layer_norm(op);
  EXPECT_TRUE(same_bits(in_place.x, p.y));
}

TEST(LayerNorm, EmptyIsFine) {
  Problem<float> p({0, 4, 0});
  const auto dgain = p.dgain;
  layer_norm(p.forward());
  layer_norm_backward(p.backward());
  EXPECT_TRUE(same_bits(p.dgain, dgain));
}

TEST(LayerNorm, RejectsWrongShapes) {
  Problem<float> p({3, 4, 0});
  auto op = p.forward();
  op.gain.size = 3;
  EXPECT_EQ(error_of([&] { layer_norm(op); }), "layer_norm: gain has 3 entries, want 4");
  op = p.forward();
  op.rstd = {};
  EXPECT_EQ(error_of([&] { layer_norm(op); }), "layer_norm: rstd has 0 entries, want 3");
  op = p.forward();
  op.y.rows = 4;
  EXPECT_EQ(error_of([&] { layer_norm(op); }), "layer_norm: y is 4x4, want 3x4");
  auto back = p.backward();
  back.dbias = {};
  EXPECT_EQ(error_of([&] { layer_norm_backward(back); }),
            "layer_norm_backward: dbias has 0 entries, want 4");
}

}  // namespace

}  // namespace longstride::ops
