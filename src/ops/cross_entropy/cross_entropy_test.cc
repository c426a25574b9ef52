#include "ops/cross_entropy/cross_entropy.h"

#include <gtest/gtest.h>

#include <numeric>

#include "as_good_as.h"
#include "ops/convert/bf16_test_util.h"
#include "ops/cross_entropy/cross_entropy_ref.h"
#include "ops/test_util.h"

namespace longstride::ops {

namespace {

using test::as_good_as, test::error_of, test::for_each_target, test::numeric_gradient;
using test::poisoned, test::random_bytes, test::random_normal, test::relative_l2, test::same_bits;
using test::view;

struct Case {
  std::int64_t R, V;
  double scale;  // of the logits
  friend void PrintTo(const Case& c, std::ostream* out) {
    *out << c.R << "x" << c.V << " logits of size " << c.scale;
  }
};

template <class Real>
struct Problem {
  explicit Problem(Case shape) : c(shape) {}

  CrossEntropy<Real> op() {
    return {.logits = matrix<const Real>(logits.data(), c.R, c.V),
            .targets = targets.data(),
            .nats = view(nats),
            .dlogits = matrix(dlogits.data(), c.R, c.V),
            .scale = Real(0.125)};
  }

  Case c;
  std::vector<Real> logits = random_normal<Real>(c.R * c.V, 1, c.scale), nats = poisoned<Real>(c.R),
                    dlogits = poisoned<Real>(c.R * c.V);
  std::vector<std::uint8_t> targets =
      random_bytes(c.R, 2, static_cast<std::uint32_t>(std::min<std::int64_t>(c.V, 256)));
};

class CrossEntropyTest : public testing::TestWithParam<Case> {};

TEST_P(CrossEntropyTest, MatchesFloat64) {
  for_each_target([] {
    Problem<double> truth(GetParam());
    Problem<float> plain(GetParam()), got(GetParam());
    cross_entropy(truth.op());
    ref::cross_entropy(plain.op());
    cross_entropy(got.op());
    EXPECT_TRUE(as_good_as<float>(plain.nats, got.nats, truth.nats));
    EXPECT_TRUE(as_good_as<float>(plain.dlogits, got.dlogits, truth.dlogits));
  });
}

TEST_P(CrossEntropyTest, SameBitsForAnyThreads) {
  test::expect_same_for_any_threads([] {
    Problem<float> p(GetParam());
    cross_entropy(p.op());
    p.nats.insert(p.nats.end(), p.dlogits.begin(), p.dlogits.end());
    return p.nats;
  });
}

TEST_P(CrossEntropyTest, RowsDoNotDependOnTheCall) {
  for_each_target([] {
    Problem<float> whole(GetParam()), alone(GetParam());
    cross_entropy(whole.op());
    auto op = alone.op();
    for (std::int64_t r = 0; r < op.logits.rows; ++r)
      cross_entropy({.logits = matrix(op.logits.row(r), 1, op.logits.cols),
                     .targets = op.targets + r,
                     .nats = {op.nats.data + r, 1},
                     .dlogits = matrix(op.dlogits.row(r), 1, op.logits.cols),
                     .scale = op.scale});
    EXPECT_TRUE(same_bits(alone.nats, whole.nats));
    EXPECT_TRUE(same_bits(alone.dlogits, whole.dlogits));
  });
}

TEST_P(CrossEntropyTest, LossAloneAndInPlaceAreTheSame) {
  Problem<float> both(GetParam()), loss(GetParam()), in_place(GetParam());
  cross_entropy(both.op());
  auto op = loss.op();
  op.dlogits = {};
  cross_entropy(op);
  EXPECT_TRUE(same_bits(loss.nats, both.nats));
  op = in_place.op();
  op.dlogits.data = in_place.logits.data();
  cross_entropy(op);
  EXPECT_TRUE(same_bits(in_place.nats, both.nats));
  EXPECT_TRUE(same_bits(in_place.logits, both.dlogits));
}

// dlogits in bf16: the rounding of the float result; the losses are the same.
TEST_P(CrossEntropyTest, Bf16IsTheRoundedFloat) {
  for_each_target([] {
    const auto [R, V, scale] = GetParam();
    Problem<float> p(GetParam()), rounded(GetParam());
    cross_entropy(p.op());
    test::GuardedBf16 dlogits(R * V);
    const auto op = rounded.op();
    cross_entropy(CrossEntropy<float, bf16>{.logits = op.logits,
                                            .targets = op.targets,
                                            .nats = op.nats,
                                            .dlogits = matrix(dlogits.data(), R, V),
                                            .scale = op.scale});
    EXPECT_TRUE(same_bits(dlogits.floats(), test::to_float(test::to_bf16(p.dlogits))));
    EXPECT_TRUE(same_bits(rounded.nats, p.nats));
    EXPECT_TRUE(dlogits.untouched_behind());

    std::fill(rounded.nats.begin(), rounded.nats.end(), std::nanf(""));
    cross_entropy(CrossEntropy<float, bf16>{
        .logits = op.logits, .targets = op.targets, .nats = op.nats, .dlogits = {}});
    EXPECT_TRUE(same_bits(rounded.nats, p.nats));
  });
}

TEST_P(CrossEntropyTest, Bf16SameBitsForAnyThreads) {
  test::expect_same_for_any_threads([] {
    Problem<float> p(GetParam());
    const auto op = p.op();
    test::GuardedBf16 dlogits(p.c.R * p.c.V);
    cross_entropy(CrossEntropy<float, bf16>{.logits = op.logits,
                                            .targets = op.targets,
                                            .nats = op.nats,
                                            .dlogits = matrix(dlogits.data(), p.c.R, p.c.V)});
    return dlogits.floats();
  });
}

INSTANTIATE_TEST_SUITE_P(Shapes, CrossEntropyTest,
                         testing::Values(Case{1, 1, 1}, Case{3, 2, 1}, Case{7, 33, 3},
                                         Case{200, 256, 1}, Case{65, 256, 30}, Case{9, 257, 1e-3},
                                         Case{11, 700, 5}, Case{70, 256, 1e4}));

class CrossEntropyGradientTest : public testing::TestWithParam<Case> {};

TEST_P(CrossEntropyGradientTest, IsTheDerivative) {
  Problem<double> p(GetParam());
  const auto dlogits = numeric_gradient(p.logits, [&] {
    cross_entropy(p.op());
    return 0.125 * std::accumulate(p.nats.begin(), p.nats.end(), 0.0);
  });
  cross_entropy(p.op());
  EXPECT_LE(relative_l2(p.dlogits, dlogits), 1e-8);
}

INSTANTIATE_TEST_SUITE_P(Shapes, CrossEntropyGradientTest,
                         testing::Values(Case{1, 1, 1}, Case{3, 2, 1}, Case{2, 33, 3},
                                         Case{5, 7, 2}, Case{3, 64, 1}));

TEST(CrossEntropy, ExtremeLogits) {
  constexpr float kInf = std::numeric_limits<float>::infinity();
  for_each_target([] {
    Problem<float> p({4, 256, 0});
    std::fill(p.targets.begin(), p.targets.end(), std::uint8_t{7});
    p.logits[7] = 1e4f;        // sure and right
    p.logits[256 + 8] = 1e4f;  // sure and wrong
    for (int v = 512; v < 768; ++v) p.logits[static_cast<std::size_t>(v)] = -1e4f;  // uniform, far
    p.logits[768 + 9] = -kInf;  // impossible symbol
    cross_entropy(p.op());
    EXPECT_EQ(p.nats[0], 0.0f);
    EXPECT_EQ(p.nats[1], 1e4f);
    EXPECT_FLOAT_EQ(p.nats[2], std::log(256.0f));
    EXPECT_FLOAT_EQ(p.nats[3], std::log(255.0f));
    EXPECT_EQ(p.dlogits[7], 0.0f);
    EXPECT_EQ(p.dlogits[256 + 7], -0.125f);
    EXPECT_EQ(p.dlogits[256 + 8], 0.125f);
    EXPECT_EQ(p.dlogits[768 + 9], 0.0f);
  });
}

// A sure prediction: its loss, far below the rounding of 1, is not lost.
TEST(CrossEntropy, SmallLossesKeepTheirDigits) {
  for_each_target([] {
    Problem<float> p({1, 2, 0});
    p.logits = {0, 20};
    p.targets = {1};
    cross_entropy(p.op());
    EXPECT_NEAR(p.nats[0] / std::log1p(std::exp(-20.0)), 1, 1e-6);
  });
}

TEST(CrossEntropy, NonfiniteLogitsShow) {
  constexpr float kInf = std::numeric_limits<float>::infinity();
  for_each_target([] {
    for (const float bad : {std::nanf(""), kInf})
      for (const std::size_t at : {0u, 100u, 255u, 256u}) {
        Problem<float> p({1, 257, 1});
        p.logits[at] = bad;
        cross_entropy(p.op());
        EXPECT_TRUE(std::isnan(p.nats[0])) << bad << " at " << at;
        EXPECT_TRUE(std::isnan(p.dlogits[at])) << bad << " at " << at;
      }
  });
}

TEST(CrossEntropy, RejectsWrongInputs) {
  Problem<float> p({3, 4, 1});
  p.targets = {0, 4, 1};
  EXPECT_EQ(error_of([&] { cross_entropy(p.op()); }),
            "cross_entropy: target 4 of row 1, want less than 4");
  p.targets[1] = 1;
  auto op = p.op();
  op.nats.size = 2;
  EXPECT_EQ(error_of([&] { cross_entropy(op); }), "cross_entropy: nats has 2 entries, want 3");
  op = p.op();
  op.dlogits.cols = 3;
  EXPECT_EQ(error_of([&] { cross_entropy(op); }), "cross_entropy: dlogits is 3x3, want 3x4");
  op = p.op();
  op.targets = nullptr;
  EXPECT_EQ(error_of([&] { cross_entropy(op); }), "cross_entropy: no targets for 3 rows");
}

}  // namespace

}  // namespace longstride::ops
