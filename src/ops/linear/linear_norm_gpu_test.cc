// Maps that end in residual and norm against float64 on the same inputs.
#include <gtest/gtest.h>

#include "as_good_as.h"
#include "ops/gpu_rows_test_util.h"
#include "ops/linear/linear_norm_cuda.h"
#include "ops/residual/residual_ref.h"

namespace longstride::ops::cuda {

namespace {

using test::as_good_as, test::DeviceRows, test::Gaps, test::random_normal, test::relative_l2;
using test::rounded, test::same_bits;

struct Case {
  std::int64_t R, d, inner;
  double p = 0;
  Gaps gaps = {};
  std::int64_t first_row = 0;
  friend void PrintTo(const Case& c, std::ostream* out) {
    *out << c.R << " rows of " << c.d << " by sums of " << c.inner << ", dropout " << c.p
         << ", gaps " << c.gaps.behind << " and " << c.gaps.before << ", first row " << c.first_row;
  }
};

Dropout dropout_of(const Case& c) {
  return {.p = c.p,
          .seed = 0x123456789abcdef,
          .step = (std::uint64_t{5} << 32) + 77,
          .lane = 13,
          .first_row = c.first_row};
}

template <class Real>
std::vector<Real> dropped(const Case& c, std::vector<Real> x) {
  for (std::size_t i = 0; i < x.size(); ++i)
    x[i] =
        ref::dropout_element(dropout_of(c), c.first_row * c.d + static_cast<std::int64_t>(i), x[i]);
  return x;
}

// [rows, cols] = left [rows, inner] right, right(k, n)
template <class Real, class Right>
std::vector<Real> product(const std::vector<Real>& left, std::int64_t inner, std::int64_t cols,
                          const Right& right) {
  const auto rows = static_cast<std::int64_t>(left.size()) / inner;
  std::vector<Real> out(static_cast<std::size_t>(rows * cols));
#pragma omp parallel for
  for (std::int64_t r = 0; r < rows; ++r)
    for (std::int64_t k = 0; k < inner; ++k)
      for (std::int64_t n = 0; n < cols; ++n)
        out[static_cast<std::size_t>(r * cols + n)] +=
            left[static_cast<std::size_t>(r * inner + k)] * right(k, n);
  return out;
}

template <class A>
std::vector<float> stored(const std::vector<float>& values) {
  return rounded<A, float>(values);
}

template <class Real>
struct Forward {
  std::vector<Real> h, xhat, rstd;

  Forward(const Case& c, const std::vector<float>& before, std::vector<Real> branch) : h(branch) {
    branch = dropped(c, branch);
    for (std::size_t i = 0; i < h.size(); ++i) h[i] = static_cast<Real>(before[i]) + branch[i];
    const auto d = static_cast<std::size_t>(c.d);
    for (std::size_t at = 0; at < h.size(); at += d) {
      Real mean = 0, variance = 0;
      for (std::size_t n = at; n < at + d; ++n) mean += h[n];
      mean /= static_cast<Real>(d);
      for (std::size_t n = at; n < at + d; ++n) variance += (h[n] - mean) * (h[n] - mean);
      rstd.push_back(1 / std::sqrt(variance / static_cast<Real>(d) + static_cast<Real>(1e-5f)));
      for (std::size_t n = at; n < at + d; ++n) xhat.push_back((h[n] - mean) * rstd.back());
    }
  }
};

template <class Real>
std::vector<Real> gradient(const Case& c, const std::vector<Real>& dxhat,
                           const std::vector<Real>& xhat, const std::vector<float>& rstd,
                           const std::vector<float>& dh) {
  std::vector<Real> result(dxhat.size());
  const auto d = static_cast<std::size_t>(c.d);
  for (std::size_t r = 0, at = 0; r < rstd.size(); ++r, at += d) {
    Real mean = 0, along = 0;
    for (std::size_t n = at; n < at + d; ++n) mean += dxhat[n], along += dxhat[n] * xhat[n];
    mean /= static_cast<Real>(d), along /= static_cast<Real>(d);
    for (std::size_t n = at; n < at + d; ++n)
      result[n] = static_cast<Real>(dh[n]) +
                  static_cast<Real>(rstd[r]) * (dxhat[n] - mean - xhat[n] * along);
  }
  return result;
}

class LinearNormGpuTest : public test::GpuTest, public testing::WithParamInterface<Case> {
 protected:
  template <class A>
  void forward() {
    const Case c = GetParam();
    if (!ends_in_norm<A>(c.d, c.inner)) GTEST_SKIP() << "not on this card";
    const auto x = random_normal<float>(c.R * c.inner, 1),
               w = random_normal<float>(c.inner * c.d, 2, 1 / std::sqrt(double(c.inner))),
               bias = random_normal<float>(c.d, 3),
               before = random_normal<float>(c.R * c.d, 4, 1, 0.5);
    const DeviceRows<A> left(c.R, c.inner, x, c.gaps), weight(c.inner, c.d, w, c.gaps);
    const DeviceRows<float> h(c.R, c.d, before, c.gaps);
    const DeviceRows<A> xhat(c.R, c.d, c.gaps), again(c.R, c.d, c.gaps);
    const auto biases = test::to_device(bias);
    const auto rstd = test::poisoned_device<float>(c.R), rstd2 = test::poisoned_device<float>(c.R);
    const auto step =
        test::to_device(std::vector<std::int64_t>{static_cast<std::int64_t>(dropout_of(c).step)});
    Dropout other = dropout_of(c);
    other.step = 3;
    linear_residual_norm<A>(nullptr, {.x = left.matrix(),
                                      .weight = weight.matrix(),
                                      .bias = biases.vector(),
                                      .h = h.matrix(),
                                      .xhat = xhat.matrix(),
                                      .rstd = rstd.vector(),
                                      .dropout = other,
                                      .device_step = step.data()});
    const auto branch = [&]<class Real>() {
      const auto right = rounded<A, Real>(w);
      auto sums = product(rounded<A, Real>(x), c.inner, c.d, [&](std::int64_t k, std::int64_t n) {
        return right[static_cast<std::size_t>(k * c.d + n)];
      });
      for (std::size_t i = 0; i < sums.size(); ++i)
        sums[i] += static_cast<Real>(bias[i % bias.size()]);
      return sums;
    };
    const Forward<double> truth(c, before, branch.template operator()<double>());
    const Forward<float> plain(c, before, stored<A>(branch.template operator()<float>()));
    EXPECT_TRUE(as_good_as<float>(plain.h, h.values(), truth.h)) << "h";
    EXPECT_LE(relative_l2(h.values(), truth.h), 1e-5) << "h: nothing was rounded to A";
    EXPECT_TRUE(as_good_as<float>(stored<A>(plain.xhat), xhat.values(), truth.xhat)) << "xhat";
    EXPECT_TRUE(as_good_as<float>(plain.rstd, test::to_host(rstd), truth.rstd)) << "rstd";
    EXPECT_TRUE(h.gaps_untouched() && xhat.gaps_untouched());

    linear_residual_norm<A>(nullptr,
                            {.h = h.matrix(), .xhat = again.matrix(), .rstd = rstd2.vector()});
    EXPECT_TRUE(same_bits(again.values(), xhat.values())) << "the norm alone";
    EXPECT_TRUE(same_bits(test::to_host(rstd2), test::to_host(rstd))) << "rstd of the norm alone";
    EXPECT_TRUE(again.gaps_untouched());
  }

  template <class A>
  void backward() {
    const Case c = GetParam();
    if (!ends_in_norm<A>(c.d, c.inner)) GTEST_SKIP() << "not on this card";
    const auto dy = random_normal<float>(c.R * c.inner, 1),
               w = random_normal<float>(c.d * c.inner, 2, 1 / std::sqrt(double(c.inner))),
               xhat = random_normal<float>(c.R * c.d, 3),
               before = random_normal<float>(c.R * c.d, 4);
    auto scale = random_normal<float>(c.R, 5);
    for (float& s : scale) s = 0.5f + std::abs(s);
    const DeviceRows<A> left(c.R, c.inner, dy, c.gaps), weight(c.d, c.inner, w, c.gaps);
    const DeviceRows<A> kept(c.R, c.d, xhat, c.gaps), dbranch(c.R, c.d, c.gaps);
    DeviceRows<float> dh(c.R, c.d, before, c.gaps);
    const auto rstd = test::to_device(scale);
    LinearNormBackward<A> op = {.dy = left.matrix(),
                                .weight = weight.matrix(),
                                .xhat = kept.matrix(),
                                .rstd = rstd.vector(),
                                .dh = dh.matrix(),
                                .dbranch = dbranch.matrix(),
                                .dropout = dropout_of(c)};
    linear_norm_backward(nullptr, op);
    const auto dxhat = [&]<class Real>() {
      const auto right = rounded<A, Real>(w);
      return product(rounded<A, Real>(dy), c.inner, c.d, [&](std::int64_t k, std::int64_t n) {
        return right[static_cast<std::size_t>(n * c.inner + k)];
      });
    };
    const auto truth =
        gradient(c, dxhat.template operator()<double>(), rounded<A>(xhat), scale, before);
    const auto plain = gradient(c, stored<A>(dxhat.template operator()<float>()),
                                rounded<A, float>(xhat), scale, before);
    const auto got = dh.values();
    EXPECT_TRUE(as_good_as<float>(plain, got, truth)) << "dh";
    EXPECT_LE(relative_l2(got, truth), 1e-5) << "dh: nothing was rounded to A";
    EXPECT_TRUE(same_bits(dbranch.values(), stored<A>(dropped(c, got)))) << "dbranch";
    EXPECT_TRUE(dh.gaps_untouched() && dbranch.gaps_untouched());

    dh.fill(before);
    op.dbranch = {};
    linear_norm_backward(nullptr, op);
    EXPECT_TRUE(same_bits(dh.values(), got)) << "without dbranch";
  }
};

TEST_P(LinearNormGpuTest, ForwardBf16) { forward<bf16>(); }
TEST_P(LinearNormGpuTest, ForwardFp16) { forward<fp16>(); }
TEST_P(LinearNormGpuTest, BackwardBf16) { backward<bf16>(); }
TEST_P(LinearNormGpuTest, BackwardFp16) { backward<fp16>(); }

// Rows: less than a tile, tiles and a bit, more tiles than the groups of all clusters have at a
// time; sums: of one step, of more steps than buffers.
INSTANTIATE_TEST_SUITE_P(
    Shapes, LinearNormGpuTest,
    testing::Values(Case{1, 256, 8}, Case{63, 256, 256, 0.25, {}, 11}, Case{64, 256, 512},
                    Case{200, 256, 512, 0.4, {8, 8}},
                    Case{777, 256, 200, 0.1, {}, (std::int64_t{1} << 34) / 256 + 5},
                    Case{25361, 256, 72, 0.25}));

class LinearNormGpu : public test::GpuTest {};

template <class A>
void repeat() {
  const std::int64_t R = 17000, d = 256, inner = 512;
  if (!ends_in_norm<A>(d, inner)) GTEST_SKIP() << "not on this card";
  const auto before = random_normal<float>(R * d, 1);
  const DeviceRows<A> x(R, inner, random_normal<float>(R * inner, 2)),
      w(inner, d, random_normal<float>(inner * d, 3, 0.05)),
      v(d, inner, random_normal<float>(inner * d, 4, 0.05)), xhat(R, d), dbranch(R, d);
  const DeviceRows<float> start(R, d, before), h(R, d), dh(R, d);
  const device::DeviceBuffer<float> rstd(R);
  const Dropout dropout = {.p = 0.25, .seed = 5};
  std::vector<float> first, first_xhat, first_dh, first_dbranch;
  for (int i = 0; i < 250; ++i) {
    device::copy(nullptr, h.matrix().data, start.matrix().data, R * d * 4);
    device::copy(nullptr, dh.matrix().data, start.matrix().data, R * d * 4);
    linear_residual_norm<A>(nullptr, {.x = x.matrix(),
                                      .weight = w.matrix(),
                                      .h = h.matrix(),
                                      .xhat = xhat.matrix(),
                                      .rstd = rstd.vector(),
                                      .dropout = dropout});
    linear_norm_backward<A>(nullptr, {.dy = x.matrix(),
                                      .weight = v.matrix(),
                                      .xhat = xhat.matrix(),
                                      .rstd = rstd.vector(),
                                      .dh = dh.matrix(),
                                      .dbranch = dbranch.matrix(),
                                      .dropout = dropout});
    if (i == 0) {
      first = h.values(), first_xhat = xhat.values();
      first_dh = dh.values(), first_dbranch = dbranch.values();
    } else if (i % 25 == 24) {
      ASSERT_TRUE(same_bits(h.values(), first) && same_bits(xhat.values(), first_xhat) &&
                  same_bits(dh.values(), first_dh) && same_bits(dbranch.values(), first_dbranch))
          << "run " << i;
    }
  }
}

TEST_F(LinearNormGpu, SameBitsEveryTimeBf16) { repeat<bf16>(); }
TEST_F(LinearNormGpu, SameBitsEveryTimeFp16) { repeat<fp16>(); }

TEST_F(LinearNormGpu, BeyondTwoToThe31) {
  constexpr std::int64_t kStride = (std::int64_t{1} << 30) + 8, kRows = 4, d = 256, kInner = 64;
  if (!ends_in_norm<bf16>(d, kInner)) GTEST_SKIP() << "not on this card";
  if (!test::device_has(7 * kRows * kStride)) GTEST_SKIP() << "the card is too small";
  const DeviceRows<bf16> x(kRows, kInner, random_normal<float>(kRows * kInner, 1)),
      w(kInner, d, random_normal<float>(kInner * d, 2)), xhat(kRows, d), back(kRows, d);
  const DeviceRows<float> h(kRows, d, random_normal<float>(kRows * d, 3));
  const device::DeviceBuffer<float> memory(kRows * kStride);
  const device::DeviceBuffer<bf16> wide(kRows * kStride);
  const Matrix<float> far_h = {memory.data(), kRows, d, kStride};
  const Matrix<bf16> far_xhat = {wide.data(), kRows, d, kStride};
  for (std::int64_t r = 0; r < kRows; ++r)
    device::copy(nullptr, far_h.row(r), h.matrix().row(r), d * 4);
  LinearResidualNorm<bf16> op = {
      .x = x.matrix(), .weight = w.matrix(), .h = h.matrix(), .xhat = xhat.matrix()};
  linear_residual_norm(nullptr, op);
  op.h = far_h;
  op.xhat = far_xhat;
  linear_residual_norm(nullptr, op);
  for (std::int64_t r = 0; r < kRows; ++r)
    device::copy(nullptr, back.matrix().row(r), far_xhat.row(r), d * 2);
  EXPECT_TRUE(same_bits(back.values(), xhat.values()));
}

TEST_F(LinearNormGpu, RejectsWhatItDoesNotTake) {
  EXPECT_FALSE(ends_in_norm<float>(256, 256));
  EXPECT_FALSE(ends_in_norm<bf16>(256, 520));
  EXPECT_FALSE(ends_in_norm<bf16>(384, 256));
  EXPECT_FALSE(ends_in_norm<bf16>(512, 512));
  const DeviceRows<float> h(2, 384);
  const DeviceRows<bf16> xhat(2, 384);
  EXPECT_EQ(test::error_of([&] {
              linear_residual_norm<bf16>(nullptr, {.h = h.matrix(), .xhat = xhat.matrix()});
            }),
            "linear_residual_norm: 2 rows of 384 by sums of 0, want what ends_in_norm() takes");
}

}  // namespace

}  // namespace longstride::ops::cuda
