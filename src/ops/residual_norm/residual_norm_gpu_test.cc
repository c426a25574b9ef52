// The residual and its norm on the GPU: the stream and the draws have the bits of the CPU, the rest
// is held to float64.
#include <gtest/gtest.h>

#include "as_good_as.h"
#include "ops/gpu_rows_test_util.h"
#include "ops/residual/residual_ref.h"
#include "ops/residual_norm/residual_norm_cuda.h"

namespace longstride::ops::cuda {

namespace {

using test::as_good_as, test::DeviceRows, test::Gaps, test::random_normal, test::relative_l2;
using test::rounded, test::same_bits;

struct Case {
  std::int64_t R, C;
  double p = 0;
  Gaps gaps = {};
  std::int64_t first_row = 0;
  friend void PrintTo(const Case& c, std::ostream* out) {
    *out << c.R << "x" << c.C << ", dropout " << c.p << ", gaps " << c.gaps.behind << " and "
         << c.gaps.before << ", first row " << c.first_row;
  }
};

Dropout dropout_of(const Case& c) {
  return {.p = c.p,
          .seed = 0x123456789abcdef,
          .step = (std::uint64_t{5} << 32) + 77,
          .lane = 13,
          .first_row = c.first_row};
}

// xhat and rstd of every row of h, and the gradient of h, in Real.
template <class Real>
struct Norm {
  Norm(const std::vector<Real>& h, std::int64_t C, float eps) : xhat(h.size()) {
    for (std::size_t at = 0; at < h.size(); at += static_cast<std::size_t>(C)) {
      Real mean = 0, variance = 0;
      for (std::size_t c = at; c < at + static_cast<std::size_t>(C); ++c) mean += h[c];
      mean /= static_cast<Real>(C);
      for (std::size_t c = at; c < at + static_cast<std::size_t>(C); ++c)
        variance += (h[c] - mean) * (h[c] - mean);
      rstd.push_back(1 / std::sqrt(variance / static_cast<Real>(C) + static_cast<Real>(eps)));
      for (std::size_t c = at; c < at + static_cast<std::size_t>(C); ++c)
        xhat[c] = (h[c] - mean) * rstd.back();
    }
  }
  std::vector<Real> xhat, rstd;
};

template <class Real>
std::vector<Real> gradient(const std::vector<Real>& dxhat, const std::vector<Real>& xhat,
                           const std::vector<float>& rstd, const std::vector<float>& dh,
                           std::int64_t C) {
  std::vector<Real> result(dxhat.size());
  for (std::size_t r = 0, at = 0; r < rstd.size(); ++r, at += static_cast<std::size_t>(C)) {
    Real mean = 0, along = 0;
    for (std::size_t c = at; c < at + static_cast<std::size_t>(C); ++c) {
      mean += dxhat[c];
      along += dxhat[c] * xhat[c];
    }
    mean /= static_cast<Real>(C), along /= static_cast<Real>(C);
    for (std::size_t c = at; c < at + static_cast<std::size_t>(C); ++c)
      result[c] = static_cast<Real>(dh[c]) +
                  static_cast<Real>(rstd[r]) * (dxhat[c] - mean - xhat[c] * along);
  }
  return result;
}

template <class Real>
std::vector<Real> dropped(const Case& c, std::vector<Real> x) {
  for (std::size_t i = 0; i < x.size(); ++i)
    x[i] =
        ref::dropout_element(dropout_of(c), c.first_row * c.C + static_cast<std::int64_t>(i), x[i]);
  return x;
}

template <class Real>
std::vector<Real> sum(const std::vector<float>& a, std::vector<Real> b) {
  for (std::size_t i = 0; i < a.size(); ++i) b[i] += static_cast<Real>(a[i]);
  return b;
}

std::vector<float> positive(std::int64_t size, std::uint64_t seed) {
  auto values = random_normal<float>(size, seed);
  for (float& v : values) v = 0.5f + std::abs(v);
  return values;
}

// A step in device memory, where the host's says something else.
struct DeviceStep {
  explicit DeviceStep(const Dropout& dropout)
      : value(test::to_device(std::vector<std::int64_t>{static_cast<std::int64_t>(dropout.step)})) {
  }
  device::DeviceBuffer<std::int64_t> value;
};

class ResidualNormGpuTest : public test::GpuTest, public testing::WithParamInterface<Case> {
 protected:
  template <class A>
  void forward() {
    const Case c = GetParam();
    const auto h = random_normal<float>(c.R * c.C, 1, 1, 0.5);
    const auto branch = random_normal<float>(c.R * c.C, 2);
    const DeviceRows<float> stream(c.R, c.C, h, c.gaps);
    const DeviceRows<A> x(c.R, c.C, branch, c.gaps), xhat(c.R, c.C, c.gaps);
    const auto rstd = test::poisoned_device<float>(c.R);
    residual_norm<A>(nullptr, {.h = stream.matrix(),
                               .branch = x.matrix(),
                               .xhat = xhat.matrix(),
                               .rstd = rstd.vector(),
                               .dropout = dropout_of(c)});
    const auto want = sum(h, dropped(c, rounded<A, float>(branch)));
    EXPECT_TRUE(same_bits(stream.values(), want));
    const Norm<double> truth(sum(h, dropped(c, rounded<A>(branch))), c.C, 1e-5f);
    const Norm<float> plain(want, c.C, 1e-5f);
    const auto got = xhat.values();
    EXPECT_TRUE(as_good_as<float>(rounded<A>(plain.xhat), got, truth.xhat));
    EXPECT_TRUE(as_good_as<float>(plain.rstd, test::to_host(rstd), truth.rstd));
    EXPECT_TRUE(stream.gaps_untouched() && xhat.gaps_untouched());
    if (sizeof(A) < 4 || c.C == 1) return;
    EXPECT_LE(relative_l2(got, truth.xhat), 2e-6);
  }

  // Only one of the two halves, and both with the step on the device, xhat over the branch.
  template <class A>
  void halves() {
    const Case c = GetParam();
    const auto h = random_normal<float>(c.R * c.C, 1, 1, 0.5);
    const auto branch = random_normal<float>(c.R * c.C, 2);
    const DeviceRows<float> stream(c.R, c.C, h, c.gaps), fused(c.R, c.C, h, c.gaps);
    const DeviceRows<A> x(c.R, c.C, branch, c.gaps), xhat(c.R, c.C, c.gaps);
    const auto rstd = test::poisoned_device<float>(c.R), rstd2 = test::poisoned_device<float>(c.R);
    residual_norm<A>(nullptr,
                     {.h = stream.matrix(), .branch = x.matrix(), .dropout = dropout_of(c)});
    const auto between = stream.values();
    residual_norm<A>(nullptr, {.h = stream.matrix(), .xhat = xhat.matrix(), .rstd = rstd.vector()});
    EXPECT_TRUE(same_bits(stream.values(), between));
    Dropout other = dropout_of(c);
    const DeviceStep step(other);
    other.step = 3;
    residual_norm<A>(nullptr, {.h = fused.matrix(),
                               .branch = x.matrix(),
                               .xhat = x.matrix(),
                               .rstd = rstd2.vector(),
                               .dropout = other,
                               .device_step = step.value.data()});
    EXPECT_TRUE(same_bits(fused.values(), between));
    EXPECT_TRUE(same_bits(x.values(), xhat.values()));
    EXPECT_TRUE(same_bits(test::to_host(rstd), test::to_host(rstd2)));
  }

  template <class A>
  void backward(bool add) {
    const Case c = GetParam();
    const auto dxhat = random_normal<float>(c.R * c.C, 3),
               xhat = random_normal<float>(c.R * c.C, 4);
    const auto rstd = positive(c.R, 5);
    const auto before = add ? random_normal<float>(c.R * c.C, 6)
                            : std::vector<float>(static_cast<std::size_t>(c.R * c.C));
    DeviceRows<float> dh(c.R, c.C, c.gaps);  // poisoned unless it is added to
    if (add) dh.fill(before);
    const DeviceRows<A> in(c.R, c.C, dxhat, c.gaps), kept(c.R, c.C, xhat, c.gaps);
    const DeviceRows<A> dbranch(c.R, c.C, c.gaps);
    const auto scale = test::to_device(rstd);
    Dropout other = dropout_of(c);
    const DeviceStep step(other);
    other.step = 3;
    residual_norm_backward<A>(nullptr, {.dxhat = in.matrix(),
                                        .xhat = kept.matrix(),
                                        .rstd = scale.vector(),
                                        .dh = dh.matrix(),
                                        .add = add,
                                        .dbranch = dbranch.matrix(),
                                        .dropout = other,
                                        .device_step = step.value.data()});
    const auto truth = gradient(rounded<A>(dxhat), rounded<A>(xhat), rstd, before, c.C);
    const auto plain =
        gradient(rounded<A, float>(dxhat), rounded<A, float>(xhat), rstd, before, c.C);
    const auto got = dh.values();
    EXPECT_TRUE(as_good_as<float>(plain, got, truth));
    EXPECT_LE(relative_l2(got, truth), 2e-6);
    const auto want = rounded<A, float>(dropped(c, got));
    EXPECT_TRUE(same_bits(dbranch.values(), want));
    EXPECT_TRUE(dh.gaps_untouched() && dbranch.gaps_untouched());

    // The same without the branch, and with its gradient over dxhat.
    DeviceRows<float> again(c.R, c.C, before, c.gaps);
    residual_norm_backward<A>(nullptr, {.dxhat = in.matrix(),
                                        .xhat = kept.matrix(),
                                        .rstd = scale.vector(),
                                        .dh = again.matrix()});
    EXPECT_TRUE(as_good_as<float>(plain, again.values(), truth));
    again.fill(before);
    residual_norm_backward<A>(nullptr, {.dxhat = in.matrix(),
                                        .xhat = kept.matrix(),
                                        .rstd = scale.vector(),
                                        .dh = again.matrix(),
                                        .dbranch = in.matrix(),
                                        .dropout = dropout_of(c)});
    EXPECT_TRUE(same_bits(in.values(), rounded<A, float>(dropped(c, again.values()))));
  }
};

TEST_P(ResidualNormGpuTest, ForwardFloat) { forward<float>(); }
TEST_P(ResidualNormGpuTest, ForwardBf16) { forward<bf16>(); }
TEST_P(ResidualNormGpuTest, ForwardFp16) { forward<fp16>(); }
TEST_P(ResidualNormGpuTest, HalvesFloat) { halves<float>(); }
TEST_P(ResidualNormGpuTest, HalvesBf16) { halves<bf16>(); }
TEST_P(ResidualNormGpuTest, BackwardFloat) {
  backward<float>(true);
  backward<float>(false);
}
TEST_P(ResidualNormGpuTest, BackwardBf16) {
  backward<bf16>(true);
  backward<bf16>(false);
}
TEST_P(ResidualNormGpuTest, BackwardFp16) { backward<fp16>(true); }

constexpr std::int64_t kFar = (std::int64_t{1} << 34) / 48 + 5;  // the index of a draw passes 2^32

INSTANTIATE_TEST_SUITE_P(
    Shapes, ResidualNormGpuTest,
    testing::Values(Case{1, 16}, Case{37, 16, 0.3, {}, 11}, Case{33, 32, 0.5, {4, 0}},
                    Case{5, 48, 0.25, {}, kFar}, Case{9, 96, 0.1, {8, 8}}, Case{17, 128, 0.4},
                    Case{67, 256, 0.25, {}, 3}, Case{33, 512, 0.4, {512, 0}, 49152},
                    Case{5, 768, 0.1}, Case{6, 1000, 0.1}, Case{3, 1024, 0.9}, Case{3, 1028, 0.1},
                    Case{2, 2048, 0}, Case{3, 4096, 0.2}, Case{5, 1, 0}, Case{4, 7, 0.3, {}, 2},
                    Case{3, 33, 0.3, {2, 1}, 7}, Case{3, 64, 0.3, {2, 0}}, Case{2, 513, 0.1},
                    Case{3, 512, 0.3, {8, 1}}, Case{2, 4095, 0.01, {}, 1}));

class ResidualNormGpu : public test::GpuTest {};

TEST_F(ResidualNormGpu, SameBitsEveryTime) {
  for (const std::int64_t C : {512, 2048}) {
    const std::int64_t R = 300;
    const DeviceRows<float> h(R, C, random_normal<float>(R * C, 1)), dh(R, C);
    const DeviceRows<bf16> dxhat(R, C, random_normal<float>(R * C, 2)), xhat(R, C), dbranch(R, C);
    const device::DeviceBuffer<float> rstd(R);
    std::vector<float> first, first_dh;
    for (int i = 0; i < 250; ++i) {
      residual_norm<bf16>(nullptr, {.h = h.matrix(), .xhat = xhat.matrix(), .rstd = rstd.vector()});
      residual_norm_backward<bf16>(nullptr, {.dxhat = dxhat.matrix(),
                                             .xhat = xhat.matrix(),
                                             .rstd = rstd.vector(),
                                             .dh = dh.matrix(),
                                             .add = false});
      if (i == 0) first = xhat.values(), first_dh = dh.values();
      EXPECT_TRUE(i % 50 < 49 ||
                  (same_bits(xhat.values(), first) && same_bits(dh.values(), first_dh)))
          << i;
    }
  }
}

// The mean is far from zero: E[x^2] - mean^2 would lose everything.
TEST_F(ResidualNormGpu, MeanFarFromZero) {
  const std::int64_t R = 9, C = 512;
  const auto h = random_normal<float>(R * C, 1, 1, 4096);
  const DeviceRows<float> stream(R, C, h), xhat(R, C);
  residual_norm<float>(nullptr, {.h = stream.matrix(), .xhat = xhat.matrix()});
  const Norm<double> truth({h.begin(), h.end()}, C, 1e-5f);
  const Norm<float> plain(h, C, 1e-5f);
  EXPECT_TRUE(as_good_as<float>(plain.xhat, xhat.values(), truth.xhat));
}

TEST_F(ResidualNormGpu, BeyondTwoToThe31) {
  constexpr std::int64_t kStride = (std::int64_t{1} << 30) + 8, kRows = 4, kCols = 64;
  if (!test::device_has(6 * kRows * kStride)) GTEST_SKIP() << "the card is too small";
  const auto values = random_normal<float>(kRows * kCols, 3);
  const DeviceRows<float> h(kRows, kCols, values);
  const DeviceRows<bf16> xhat(kRows, kCols);
  residual_norm<bf16>(nullptr, {.h = h.matrix(), .xhat = xhat.matrix()});
  const device::DeviceBuffer<float> memory(kRows * kStride);
  const device::DeviceBuffer<bf16> wide(kRows * kStride);
  const Matrix<float> far_h = {memory.data(), kRows, kCols, kStride};
  const Matrix<bf16> far_xhat = {wide.data(), kRows, kCols, kStride};
  for (std::int64_t r = 0; r < kRows; ++r)
    device::copy(nullptr, far_h.row(r), h.matrix().row(r), kCols * 4);
  residual_norm<bf16>(nullptr, {.h = far_h, .xhat = far_xhat});
  const DeviceRows<bf16> back(kRows, kCols);
  for (std::int64_t r = 0; r < kRows; ++r)
    device::copy(nullptr, back.matrix().row(r), far_xhat.row(r), kCols * 2);
  EXPECT_TRUE(same_bits(back.values(), xhat.values()));
}

TEST_F(ResidualNormGpu, RejectsWrongInputs) {
  const DeviceRows<float> h(2, 4100), narrow(2, 8);
  const DeviceRows<bf16> x(2, 7);
  EXPECT_EQ(test::error_of([&] { residual_norm<bf16>(nullptr, {.h = h.matrix()}); }),
            "residual_norm: rows of 4100, want 1 to 4096");
  EXPECT_EQ(test::error_of([&] { residual_norm<bf16>(nullptr, {.h = narrow.matrix()}); }),
            "residual_norm: neither branch nor xhat, want one of them");
  EXPECT_EQ(test::error_of([&] {
              residual_norm<bf16>(nullptr, {.h = narrow.matrix(), .branch = x.matrix()});
            }),
            "residual_norm: branch is 2x7, want 2x8");
}

}  // namespace

}  // namespace longstride::ops::cuda
