// The activation on the GPU against float64, on rows with gaps and on vectors.
#include <gtest/gtest.h>

#include "as_good_as.h"
#include "ops/activation/activation_cuda.h"
#include "ops/activation/activation_ref.h"
#include "ops/gpu_rows_test_util.h"

namespace longstride::ops::cuda {

namespace {

using test::as_good_as, test::DeviceRows, test::Gaps, test::random_normal, test::relative_l2;
using test::rounded, test::same_bits, test::view;

struct Case {
  std::int64_t R, C;
  Gaps gaps;
  double scale = 1;
  friend void PrintTo(const Case& c, std::ostream* out) {
    *out << c.R << "x" << c.C << ", gaps " << c.gaps.behind << " and " << c.gaps.before
         << ", inputs of size " << c.scale;
  }
};

class ActivationGpuTest : public test::GpuTest, public testing::WithParamInterface<Case> {
 protected:
  template <class Body>
  void for_each_type(const Body& body) {
    {
      SCOPED_TRACE("float");
      body(float());
    }
    {
      SCOPED_TRACE("bf16");
      body(bf16());
    }
    {
      SCOPED_TRACE("fp16");
      body(fp16());
    }
  }
};

template <class A>
struct Problem {
  explicit Problem(const Case& c)
      : x(random_normal<float>(c.R * c.C, 1, c.scale)),
        dy(random_normal<float>(c.R * c.C, 2)),
        on_device{
            {c.R, c.C, x, c.gaps}, {c.R, c.C, dy, c.gaps}, {c.R, c.C, c.gaps}, {c.R, c.C, c.gaps}} {
  }

  // The formula in Real, rounded to A at its end where that is not the truth.
  template <class Real>
  std::vector<std::vector<Real>> formula() const {
    const auto in = rounded<A, Real>(x), gradient = rounded<A, Real>(dy);
    std::vector<Real> y(x.size()), dx(x.size());
    ref::activation(Activation<Real>{view(in), view(y)});
    ref::activation_backward(ActivationBackward<Real>{view(in), view(gradient), view(dx)});
    return {y, dx};
  }

  void expect(const DeviceRows<A>& y, const DeviceRows<A>& dx) const {
    const auto truth = formula<double>();
    const auto plain = formula<float>();
    const auto got_y = y.values(), got_dx = dx.values();
    EXPECT_TRUE(as_good_as<float>(rounded<A>(plain[0]), got_y, truth[0]));
    EXPECT_TRUE(as_good_as<float>(rounded<A>(plain[1]), got_dx, truth[1]));
    EXPECT_TRUE(y.gaps_untouched() && dx.gaps_untouched());
    if (sizeof(A) < 4) return;
    EXPECT_LE(relative_l2(got_y, truth[0]), 2e-6);
    EXPECT_LE(relative_l2(got_dx, truth[1]), 2e-6);
  }

  std::vector<float> x, dy;
  struct {
    DeviceRows<A> x, dy, y, dx;
  } on_device;
};

TEST_P(ActivationGpuTest, MatchesFloat64) {
  for_each_type([&]<class A>(A) {
    Problem<A> p(GetParam());
    activation<A>(nullptr, p.on_device.x.matrix(), p.on_device.y.matrix());
    const auto forward = p.on_device.y.values();
    activation_backward<A>(nullptr, p.on_device.x.matrix(), p.on_device.dy.matrix(),
                           p.on_device.dx.matrix(), {});
    p.expect(p.on_device.y, p.on_device.dx);
    DeviceRows<A> again(GetParam().R, GetParam().C, GetParam().gaps);
    activation_backward<A>(nullptr, p.on_device.x.matrix(), p.on_device.dy.matrix(),
                           p.on_device.dx.matrix(), again.matrix());
    p.expect(again, p.on_device.dx);
    EXPECT_TRUE(same_bits(again.values(), forward));
  });
}

TEST_P(ActivationGpuTest, InPlace) {
  for_each_type([&]<class A>(A) {
    Problem<A> p(GetParam()), q(GetParam()), o(GetParam());
    auto& d = p.on_device;
    activation_backward<A>(nullptr, d.x.matrix(), d.dy.matrix(), d.dy.matrix(), {});
    activation<A>(nullptr, d.x.matrix(), d.x.matrix());
    p.expect(d.x, d.dy);
    auto& e = q.on_device;
    activation_backward<A>(nullptr, e.x.matrix(), e.dy.matrix(), e.x.matrix(), e.y.matrix());
    q.expect(e.y, e.x);
    auto& f = o.on_device;
    activation_backward<A>(nullptr, f.x.matrix(), f.dy.matrix(), f.x.matrix(), f.dy.matrix());
    o.expect(f.dy, f.x);
  });
}

INSTANTIATE_TEST_SUITE_P(Shapes, ActivationGpuTest,
                         testing::Values(Case{1, 1, {}}, Case{1, 100003, {}}, Case{3, 7, {}, 30},
                                         Case{5, 8, {8, 8}}, Case{33, 64, {}}, Case{64, 2048, {}},
                                         Case{7, 4104, {8, 0}}, Case{9, 72, {3, 0}},
                                         Case{9, 72, {8, 3}, 30}, Case{1000, 16, {}, 0.01},
                                         Case{127, 512, {512, 0}}));

class ActivationGpu : public test::GpuTest {};

TEST_F(ActivationGpu, NoFiniteInputMakesANaN) {
  const std::vector<float> x = {-3e38f, -1e4f, -100, -50, 0, 50, 1e4f, 3e38f};
  DeviceRows<float> in(1, 8, x), ones(1, 8, std::vector<float>(8, 1)), dx(1, 8), y(1, 8);
  activation_backward<float>(nullptr, in.matrix(), ones.matrix(), dx.matrix(), y.matrix());
  const auto got = y.values(), slope = dx.values();
  EXPECT_EQ(std::vector(got.begin() + 4, got.end()), std::vector({0.0f, 50.0f, 1e4f, 3e38f}));
  EXPECT_EQ(got[0], 0.0f);
  for (const float s : slope) EXPECT_LT(std::abs(s), 1.2f);
  EXPECT_EQ(slope[7], 1.0f);
}

TEST_F(ActivationGpu, BeyondTwoToThe31) {
  constexpr std::int64_t kStride = (std::int64_t{1} << 30) + 8, kRows = 4, kCols = 24;
  if (!test::device_has(2 * kRows * kStride)) GTEST_SKIP() << "the card is too small";
  const device::DeviceBuffer<bf16> memory(kRows * kStride);
  const auto values = random_normal<float>(kRows * kCols, 3);
  const DeviceRows<bf16> x(kRows, kCols, values), y(kRows, kCols);
  const Matrix<bf16> wide = {memory.data(), kRows, kCols, kStride};
  activation<bf16>(nullptr, x.matrix(), wide);
  activation<bf16>(nullptr, x.matrix(), y.matrix());
  const DeviceRows<bf16> back(kRows, kCols);
  for (std::int64_t r = 0; r < kRows; ++r)
    device::copy(nullptr, back.matrix().row(r), wide.row(r), kCols * 2);
  EXPECT_TRUE(same_bits(back.values(), y.values()));
}

TEST_F(ActivationGpu, RejectsWrongShapes) {
  const DeviceRows<bf16> x(3, 8), y(3, 9);
  EXPECT_EQ(test::error_of([&] { activation<bf16>(nullptr, x.matrix(), y.matrix()); }),
            "activation: y is 3x9, want 3x8");
}

}  // namespace

}  // namespace longstride::ops::cuda
