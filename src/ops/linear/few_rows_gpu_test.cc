#include "ops/linear/few_rows_cuda.h"

#include <cmath>

#include "as_good_as.h"
#include "device/gpu_test_util.h"
#include "ops/test_util.h"

namespace longstride::ops::cuda {

namespace {

class FewRowsGpuTest : public test::GpuTest {};

// One call, its inputs as A holds them; rows of x and y lie in wider ones.
template <class A, class Y>
struct Case {
  std::int64_t rows, in, out, w_stride;
  bool bias, activation;
  static constexpr std::int64_t kGap = 3;
  std::vector<A> x, w;
  std::vector<float> b;

  Case(std::int64_t r, std::int64_t i, std::int64_t o, std::int64_t gap, bool with_bias,
       bool with_activation, std::uint64_t seed)
      : rows(r), in(i), out(o), w_stride(o + gap), bias(with_bias), activation(with_activation) {
    const auto nan = A(std::nanf(""));
    x.assign(static_cast<std::size_t>(rows * (in + kGap)), nan);
    w.assign(static_cast<std::size_t>(in * w_stride), nan);
    const auto xs = test::random_normal<float>(rows * in, seed);
    const auto ws = test::random_normal<float>(in * out, seed + 1, 1 / std::sqrt(double(in)));
    for (std::int64_t e = 0; e < rows * in; ++e)
      x[static_cast<std::size_t>(e / in * (in + kGap) + e % in)] =
          A(xs[static_cast<std::size_t>(e)]);
    for (std::int64_t e = 0; e < in * out; ++e)
      w[static_cast<std::size_t>(e / out * w_stride + e % out)] =
          A(ws[static_cast<std::size_t>(e)]);
    if (bias) b = test::random_normal<float>(out, seed + 2);
  }

  template <class Real>
  std::vector<double> formula() const {
    std::vector<double> y;
    for (std::int64_t r = 0; r < rows; ++r)
      for (std::int64_t n = 0; n < out; ++n) {
        Real sum = 0;
        for (std::int64_t k = 0; k < in; ++k)
          sum += static_cast<Real>(static_cast<float>(x[std::size_t(r * (in + kGap) + k)])) *
                 static_cast<Real>(static_cast<float>(w[std::size_t(k * w_stride + n)]));
        if (bias) sum += static_cast<Real>(b[static_cast<std::size_t>(n)]);
        if (activation) sum = sum / (1 + std::exp(Real(-1.702) * sum));
        y.push_back(std::is_same_v<Real, double>
                        ? static_cast<double>(sum)
                        : static_cast<double>(static_cast<float>(Y(static_cast<float>(sum)))));
      }
    return y;
  }

  // Rows [first, first + count).
  std::vector<Y> run(FewRowsScratch& scratch, std::int64_t first, std::int64_t count) const {
    const auto dx = test::to_device(x), dw = test::to_device(w);
    const auto db = test::to_device(b);
    const std::int64_t stride = out + kGap;
    const auto dy = test::poisoned_device<Y>(count * stride);
    FewRows<A, Y> op;
    op.x = {dx.data() + first * (in + kGap), count, in, in + kGap};
    op.weight = {dw.data(), in, out, w_stride};
    op.bias = db.vector();
    op.y = {dy.data(), count, out, stride};
    op.activation = activation;
    few_rows(scratch, nullptr, op);
    const std::vector<Y> all = test::to_host(dy);
    std::vector<Y> y;
    for (std::int64_t e = 0; e < count * stride; ++e) {
      const Y value = all[static_cast<std::size_t>(e)];
      if (e % stride < out)
        y.push_back(value);
      else
        EXPECT_TRUE(std::isnan(static_cast<float>(value))) << "beside the rows, at " << e;
    }
    return y;
  }
};

template <class A, class Y>
void expect_formula(std::int64_t rows, std::int64_t in, std::int64_t out, std::int64_t gap,
                    bool bias, bool activation, std::uint64_t seed) {
  SCOPED_TRACE(testing::Message() << rows << "x" << in << "x" << out << " gap " << gap << " in "
                                  << sizeof(A) << " bytes");
  const Case<A, Y> problem(rows, in, out, gap, bias, activation, seed);
  FewRowsScratch scratch(in, out);
  const std::vector<double> truth = problem.template formula<double>();
  std::vector<double> got;
  for (const Y y : problem.run(scratch, 0, rows)) got.push_back(static_cast<float>(y));
  EXPECT_TRUE(test::as_good_as<float>(problem.template formula<float>(), got, truth));
  if (std::is_same_v<A, float>) {
    EXPECT_LE(test::relative_l2(got, truth), 2e-6);
  }
}

TEST_F(FewRowsGpuTest, EveryCountOfRowsInAllTypes) {
  for (std::int64_t rows = 1; rows <= kFewRows; ++rows) {
    const auto seed = static_cast<std::uint64_t>(rows) * 10;
    expect_formula<float, float>(rows, 96, 200, 0, true, rows % 2 == 0, seed);
    expect_formula<bf16, bf16>(rows, 512, 384, 0, true, rows % 2 == 1, seed);
    expect_formula<bf16, float>(rows, 130, 256, 0, false, false, seed);
  }
}

TEST_F(FewRowsGpuTest, OddShapesAndGaps) {
  const std::int64_t sizes[][2] = {{1, 1},     {1, 300},  {7, 5},      {15, 63},  {16, 64},
                                   {17, 65},   {63, 127}, {129, 66},   {511, 70}, {513, 9},
                                   {2048, 12}, {5000, 3}, {640, 1921}, {64, 9000}};
  std::uint64_t seed = 1;
  for (const auto& [in, out] : sizes)
    for (const std::int64_t gap : {0, 1, 4}) {
      const auto rows = static_cast<std::int64_t>(1 + seed % 16);
      expect_formula<float, float>(rows, in, out, gap, seed % 2 == 0, seed % 3 == 0, seed);
      expect_formula<bf16, bf16>(rows, in, out, gap, seed % 3 == 0, seed % 2 == 0, seed);
      ++seed;
    }
}

TEST_F(FewRowsGpuTest, ARowHasTheSameBitsInAnyCompanyAndEveryTime) {
  const Case<bf16, float> problem(16, 700, 300, 0, true, true, 5);
  FewRowsScratch scratch(700, 300);
  const auto want = problem.run(scratch, 0, 16);
  for (const std::int64_t count : {1, 2, 3, 4, 5, 8, 15, 16})
    for (std::int64_t first = 0; first + count <= 16; ++first) {
      const auto got = problem.run(scratch, first, count);
      EXPECT_TRUE(test::same_bits(got, std::vector<float>(want.begin() + first * 300,
                                                          want.begin() + (first + count) * 300)))
          << count << " rows from " << first;
    }
}

TEST_F(FewRowsGpuTest, BadArgumentsAreNamed) {
  FewRowsScratch scratch(8, 8);
  const auto x = test::poisoned_device<float>(512);
  FewRows<float> op;
  op.x = x.matrix(17, 8);
  op.weight = x.matrix(8, 8);
  op.y = x.matrix(17, 8);
  const auto error = [&] { return test::error_of([&] { few_rows(scratch, nullptr, op); }); };
  EXPECT_EQ(error(), "few_rows: 17 rows, want 1 to 16");
  op.x.rows = op.y.rows = 2;
  op.weight.rows = 7;
  EXPECT_EQ(error(), "few_rows: x 2x8, W 7x8, b 0, y 2x8, want them to fit");
}

TEST(FewRowsCut, PiecesCoverTheDepthAndFitTheScratch) {
  const std::int64_t sizes[] = {1, 15, 16, 64, 65, 96, 128, 500, 512, 513, 1024, 2048, 4097, 9000};
  for (const std::int64_t most_in : sizes)
    for (const std::int64_t most_out : sizes)
      for (const std::int64_t in : sizes)
        for (const std::int64_t out : sizes) {
          if (in > most_in || out > most_out) continue;
          const FewRowsCut cut = cut_few_rows(in, out);
          ASSERT_GE(cut.pieces * cut.depth, in);
          ASSERT_LT((cut.pieces - 1) * cut.depth, in);
          ASSERT_LE(cut.depth, kFewDepth);
          ASSERT_LE(cut.pieces * kFewRows * out, few_rows_partials(most_in, most_out))
              << in << "x" << out << " of " << most_in << "x" << most_out;
        }
}

}  // namespace

}  // namespace longstride::ops::cuda
