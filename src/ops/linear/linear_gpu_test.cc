// The maps on the GPU against float64 on the same inputs. LONGSTRIDE_CUDA_PORTABLE=1 tests the path
// of cards that are no Hopper.
#include <gtest/gtest.h>

#include "as_good_as.h"
#include "device/gpu_test_util.h"
#include "ops/activation/activation_ref.h"
#include "ops/linear/linear_cuda.h"
#include "ops/linear/linear_split.h"
#include "ops/test_util.h"

namespace longstride::ops::cuda {

namespace {

using device::DeviceBuffer;
using test::as_good_as, test::poisoned_device, test::random_normal, test::relative_l2;
using test::to_device, test::to_host;

struct Case {
  std::int64_t R, in, out, gap = 0, offset = 0;  // elements behind each row, before the first
  friend void PrintTo(const Case& c, std::ostream* out) {
    *out << c.R << "x" << c.in << "x" << c.out << ", gap " << c.gap << ", offset " << c.offset;
  }
};

// Rows with a gap of NaNs behind each, as values of A, and those in double.
template <class A>
struct Input {
  Input(std::int64_t rows_, std::int64_t cols_, const Case& c, std::uint64_t seed, double scale = 1)
      : rows(rows_), cols(cols_), stride(cols_ + c.gap), offset(c.offset) {
    std::vector<A> host(static_cast<std::size_t>(rows * stride + offset),
                        static_cast<A>(std::nanf("")));
    for (const float v : random_normal<float>(rows * cols, seed, scale)) {
      const auto i = static_cast<std::int64_t>(exact.size());
      const A a = static_cast<A>(v);
      host[static_cast<std::size_t>(offset + i / cols * stride + i % cols)] = a;
      exact.push_back(static_cast<double>(static_cast<float>(a)));
    }
    on_device = to_device(host);
  }
  Matrix<const A> view() const { return {on_device.data() + offset, rows, cols, stride}; }
  double operator()(std::int64_t r, std::int64_t c) const {
    return exact[static_cast<std::size_t>(r * cols + c)];
  }

  std::int64_t rows, cols, stride, offset;
  std::vector<double> exact;
  DeviceBuffer<A> on_device;
};

// Poisoned rows to be written; values() also sees that nothing was written between them.
template <class A>
struct Output {
  Output(std::int64_t rows_, std::int64_t cols_, const Case& c)
      : rows(rows_),
        cols(cols_),
        stride(cols_ + c.gap),
        offset(c.offset),
        on_device(poisoned_device<A>(rows * stride + offset)) {}
  Matrix<A> view() const { return {on_device.data() + offset, rows, cols, stride}; }
  std::vector<float> values() const {
    std::vector<float> got;
    const auto all = to_host(on_device);
    std::int64_t written = 0;
    for (std::int64_t i = 0; i < static_cast<std::int64_t>(all.size()); ++i) {
      const float v = static_cast<float>(all[static_cast<std::size_t>(i)]);
      if (i >= offset && (i - offset) % stride < cols)
        got.push_back(v);
      else if (!std::isnan(v))
        ++written;
    }
    EXPECT_EQ(written, 0) << "elements outside the matrix were written";
    return got;
  }

  std::int64_t rows, cols, stride, offset;
  DeviceBuffer<A> on_device;
};

// sum_k term(i, j, k) + start(i, j), in Real, for all i, j; k in order. Runs along j inside, so
// that rows of j lie in the caches.
template <class Real, class Term, class Start>
std::vector<Real> sums(std::int64_t rows, std::int64_t cols, std::int64_t inner, const Term& term,
                       const Start& start) {
  std::vector<Real> out(static_cast<std::size_t>(rows * cols));
  const std::int64_t width = rows < 16 ? 8 : std::max<std::int64_t>(cols, 1);
  const std::int64_t blocks = (cols + width - 1) / width;
#pragma omp parallel for
  for (std::int64_t block = 0; block < rows * blocks; ++block) {
    const std::int64_t i = block / blocks, first = block % blocks * width;
    const std::int64_t last = std::min(first + width, cols);
    Real* const sum = out.data() + i * cols;
    for (std::int64_t k = 0; k < inner; ++k)
      for (std::int64_t j = first; j < last; ++j) sum[j] += static_cast<Real>(term(i, j, k));
    for (std::int64_t j = first; j < last; ++j) sum[j] += static_cast<Real>(start(i, j));
  }
  return out;
}

// What the plain formula stores.
template <class A>
std::vector<float> stored(const std::vector<float>& values) {
  std::vector<float> out;
  for (const float v : values) out.push_back(static_cast<float>(static_cast<A>(v)));
  return out;
}

template <class Real>
Real act(Real x) {
  return x * ref::activation_sigmoid(x);
}
template <class Real>
Real slope(Real x) {
  const Real s = ref::activation_sigmoid(x);
  return s * (1 + Real(1.702) * x * (1 - s));
}
template <class Real>
std::vector<Real> acts(std::vector<Real> values) {
  for (Real& v : values) v = act(v);
  return values;
}

template <class A>
void expect_good(const std::vector<float>& plain, const std::vector<float>& got,
                 const std::vector<double>& truth, const char* what) {
  EXPECT_TRUE(as_good_as<float>(plain, got, truth)) << what;
  if constexpr (std::is_same_v<A, float>) {
    EXPECT_LE(relative_l2(got, truth), 2e-6) << what;
  }
}

// The operations on one shape; inputs as A, outputs y as Y. The plain formula keeps all in A, the
// bias too.
template <class A>
struct Maps {
  explicit Maps(const Case& shape) : c(shape) {}

  template <class Real>
  std::vector<Real> products(bool biased) const {
    return sums<Real>(
        c.R, c.out, c.in,
        [&](auto r, auto n, auto k) {
          return static_cast<Real>(x(r, k)) * static_cast<Real>(w(k, n));
        },
        [&](auto, auto n) {
          const float b = biased ? bias[static_cast<std::size_t>(n)] : 0.0f;
          return std::is_same_v<Real, float> ? static_cast<float>(static_cast<A>(b)) : b;
        });
  }
  // dy W^T of the map [in, out] behind an activation of width in.
  template <class Real>
  std::vector<Real> products_back() const {
    return sums<Real>(
        c.R, c.in, c.out,
        [&](auto r, auto k, auto n) {
          return static_cast<Real>(dy(r, n)) * static_cast<Real>(w(k, n));
        },
        [](auto, auto) { return 0; });
  }

  template <class Y>
  void forward() {
    for (const bool biased : {false, true}) {
      const Output<Y> y(c.R, c.out, c);
      linear<A, Y>(context, nullptr,
                   {.x = x.view(),
                    .weight = w.view(),
                    .bias = biased ? bias_view() : Vector<const float>(),
                    .y = y.view()});
      expect_good<A>(stored<Y>(products<float>(biased)), y.values(), products<double>(biased), "y");
    }
  }
  void with_activation() {
    const auto truth = products<double>(true);
    const auto plain = stored<A>(products<float>(true));
    std::vector<float> first;
    const auto run = [&](Matrix<A> pre, Matrix<A> y) {
      linear_activation<A>(
          context, nullptr,
          {.x = x.view(), .weight = w.view(), .bias = bias_view(), .pre = pre, .y = y});
    };
    for (const bool keep : {true, false}) {
      const Output<A> pre(c.R, c.out, c), y(c.R, c.out, c), alone(c.R, c.out, c);
      run(keep ? pre.view() : Matrix<A>(), y.view());
      const auto got = y.values();
      expect_good<A>(stored<A>(acts(plain)), got, acts(truth), "y");
      if (keep) {
        first = got;
        expect_good<A>(plain, pre.values(), truth, "pre");
        run(alone.view(), {});
        EXPECT_TRUE(test::same_bits(alone.values(), pre.values())) << "pre with and without y";
      }
      EXPECT_TRUE(test::same_bits(got, first)) << "y with and without pre";
    }
  }
  void input_gradient() {
    const Output<A> dx(c.R, c.in, c);
    linear_input_gradient<A>(context, nullptr,
                             {.dy = dy.view(), .weight = w.view(), .dx = dx.view()});
    expect_good<A>(stored<A>(products_back<float>()), dx.values(), products_back<double>(), "dx");
  }
  void activation_gradient() {
    auto truth = products_back<double>();
    auto plain = stored<A>(products_back<float>());
    std::vector<double> y_truth;
    std::vector<float> y_plain;
    for (std::size_t i = 0; i < truth.size(); ++i) {
      truth[i] *= slope(x.exact[i]);
      plain[i] *= slope(static_cast<float>(x.exact[i]));
      y_truth.push_back(act(x.exact[i]));
      y_plain.push_back(act(static_cast<float>(x.exact[i])));
    }
    const Output<A> y(c.R, c.in, c), dpre(c.R, c.in, c);
    linear_activation_gradient<A>(
        context, nullptr,
        {.dy = dy.view(), .weight = w.view(), .pre = x.view(), .dpre = dpre.view(), .y = y.view()});
    const auto got = dpre.values(), got_y = y.values();
    expect_good<A>(stored<A>(plain), got, truth, "dpre");
    expect_good<A>(stored<A>(y_plain), got_y, y_truth, "y");

    const Matrix<A> in_place = {x.on_device.data() + x.offset, x.rows, x.cols, x.stride};
    linear_activation_gradient<A>(
        context, nullptr,
        {.dy = dy.view(), .weight = w.view(), .pre = x.view(), .dpre = in_place, .y = y.view()});
    std::vector<float> after;
    const auto all = to_host(x.on_device);
    for (std::int64_t i = 0; i < x.rows * x.cols; ++i)
      after.push_back(static_cast<float>(
          all[static_cast<std::size_t>(x.offset + i / x.cols * x.stride + i % x.cols)]));
    EXPECT_TRUE(test::same_bits(after, got)) << "dpre in the place of pre";
    EXPECT_TRUE(test::same_bits(y.values(), got_y)) << "y with dpre in the place of pre";
  }
  void weight_gradient() {
    const auto w0 = random_normal<float>(c.in * c.out, 7), b0 = random_normal<float>(c.out, 8);
    const auto term = [&](auto k, auto n, auto r) { return x(r, k) * dy(r, n); };
    const auto term_b = [&](auto, auto n, auto r) { return dy(r, n); };
    const auto zero = [](auto, auto) { return 0; };
    auto plain = sums<float>(c.in, c.out, c.R, term, zero);
    auto truth = sums<double>(c.in, c.out, c.R, term, zero);
    auto plain_b = sums<float>(1, c.out, c.R, term_b, zero);
    auto truth_b = sums<double>(1, c.out, c.R, term_b, zero);
    for (const bool add : {false, true}) {
      DeviceBuffer<float> dw = add ? to_device(w0) : poisoned_device<float>(c.in * c.out);
      DeviceBuffer<float> db = add ? to_device(b0) : poisoned_device<float>(c.out);
      linear_weight_gradient<A>(context, nullptr,
                                {.x = x.view(),
                                 .dy = dy.view(),
                                 .dweight = dw.matrix(c.in, c.out),
                                 .dbias = db.vector(),
                                 .add = add});
      for (std::size_t i = 0; add && i < w0.size(); ++i) plain[i] += w0[i], truth[i] += w0[i];
      for (std::size_t i = 0; add && i < b0.size(); ++i) plain_b[i] += b0[i], truth_b[i] += b0[i];
      expect_good<A>(plain, to_host(dw), truth, "dweight");
      expect_good<A>(plain_b, to_host(db), truth_b, "dbias");
    }
  }
  Vector<const float> bias_view() const { return bias_on_device.vector(); }

  Case c;
  LinearContext context;
  Input<A> x{c.R, c.in, c, 1}, dy{c.R, c.out, c, 2};
  Input<A> w{c.in, c.out, c, 3, 1 / std::sqrt(static_cast<double>(c.in))};
  std::vector<float> bias = random_normal<float>(c.out, 4);
  DeviceBuffer<float> bias_on_device = to_device(bias);
};

class LinearGpuTest : public test::GpuTest, public testing::WithParamInterface<Case> {
 protected:
  template <class Body>
  void for_each_type(const Body& body) {
    {
      SCOPED_TRACE("float");
      Maps<float> maps(GetParam());
      body(maps);
    }
    {
      SCOPED_TRACE("bf16");
      Maps<bf16> maps(GetParam());
      body(maps);
    }
    {
      SCOPED_TRACE("fp16");
      Maps<fp16> maps(GetParam());
      body(maps);
    }
  }
};

TEST_P(LinearGpuTest, Forward) {
  for_each_type([]<class A>(Maps<A>& maps) {
    maps.template forward<A>();
    maps.template forward<float>();
  });
}
TEST_P(LinearGpuTest, Activation) {
  for_each_type([](auto& maps) { maps.with_activation(); });
}
TEST_P(LinearGpuTest, InputGradient) {
  for_each_type([](auto& maps) { maps.input_gradient(); });
}
TEST_P(LinearGpuTest, ActivationGradient) {
  for_each_type([](auto& maps) { maps.activation_gradient(); });
}
TEST_P(LinearGpuTest, WeightGradient) {
  for_each_type([](auto& maps) { maps.weight_gradient(); });
}

INSTANTIATE_TEST_SUITE_P(Shapes, LinearGpuTest,
                         testing::Values(Case{1, 8, 8}, Case{7, 5, 3}, Case{64, 64, 64},
                                         Case{129, 72, 136, 8}, Case{300, 256, 512},
                                         Case{333, 264, 1000, 16, 8}, Case{257, 512, 256, 24},
                                         Case{1000, 40, 24}, Case{130, 513, 511},
                                         Case{200, 96, 200, 3, 1}, Case{1100, 512, 384},
                                         Case{400, 1040, 264}, Case{6000, 64, 128},
                                         Case{4100, 128, 72, 8}, Case{5001, 24, 33}));

// Arrays of any size without a copy on the host: element i is value i modulo a prime of a table.
template <class A>
struct Periodic {
  static constexpr std::int64_t kPeriod = 1'000'003;
  Periodic(std::int64_t rows_, std::int64_t cols_, std::uint64_t seed, double scale = 1)
      : rows(rows_), cols(cols_), on_device(rows * cols) {
    for (const float v : random_normal<float>(kPeriod, seed, scale))
      table.push_back(static_cast<A>(v));
    const auto first = to_device(table);
    for (std::int64_t at = 0; at < rows * cols; at += kPeriod)
      device::copy(nullptr, on_device.data() + at, first.data(),
                   std::min(kPeriod, rows * cols - at) * static_cast<std::int64_t>(sizeof(A)));
    device::synchronize(nullptr);
  }
  Matrix<const A> view() const { return on_device.matrix(rows, cols); }
  float operator()(std::int64_t r, std::int64_t c) const {
    return static_cast<float>(table[static_cast<std::size_t>((r * cols + c) % kPeriod)]);
  }

  std::int64_t rows, cols;
  std::vector<A> table;
  DeviceBuffer<A> on_device;
};

template <class A>
std::vector<float> row_of(const DeviceBuffer<A>& all, std::int64_t row, std::int64_t cols) {
  std::vector<A> values(static_cast<std::size_t>(cols));
  device::copy(nullptr, values.data(), all.data() + row * cols,
               cols * static_cast<std::int64_t>(sizeof(A)));
  device::synchronize(nullptr);
  std::vector<float> out;
  for (const A v : values) out.push_back(static_cast<float>(v));
  return out;
}

// Rows of y and dx and single elements of dW on a shape too large to compute on the host.
template <class A>
void samples_match(std::int64_t R, std::int64_t in, std::int64_t out, double bound = 1e-4) {
  LinearContext context;
  const Periodic<A> x(R, in, 11), dy(R, out, 12), w(in, out, 13, 1 / std::sqrt(double(in)));
  const auto bias = random_normal<float>(out, 14);
  const auto bias_on_device = to_device(bias);
  const auto y = poisoned_device<A>(R * out), dx = poisoned_device<A>(R * in);
  const auto dw = poisoned_device<float>(in * out), db = poisoned_device<float>(out);
  linear<A, A>(context, nullptr, {x.view(), w.view(), bias_on_device.vector(), y.matrix(R, out)});
  linear_input_gradient<A>(context, nullptr, {dy.view(), w.view(), dx.matrix(R, in)});
  linear_weight_gradient<A>(context, nullptr,
                            {x.view(), dy.view(), dw.matrix(in, out), db.vector()});
  for (const std::int64_t r : {std::int64_t{0}, R / 3, R / 2 + 77, R - 130, R - 1}) {
    const auto forward = [&](auto, auto n, auto k) { return double(x(r, k)) * double(w(k, n)); };
    const auto start = [&](auto, auto n) { return bias[static_cast<std::size_t>(n)]; };
    const auto rounded = [&](auto, auto n) {
      return static_cast<float>(static_cast<A>(bias[static_cast<std::size_t>(n)]));
    };
    expect_good<A>(stored<A>(sums<float>(1, out, in, forward, rounded)), row_of(y, r, out),
                   sums<double>(1, out, in, forward, start), "y");
    const auto backward = [&](auto, auto k, auto n) { return double(dy(r, n)) * double(w(k, n)); };
    const auto zero = [](auto, auto) { return 0; };
    expect_good<A>(stored<A>(sums<float>(1, in, out, backward, zero)), row_of(dx, r, in),
                   sums<double>(1, in, out, backward, zero), "dx");
  }
  const auto all = to_host(dw), all_b = to_host(db);
  std::vector<float> got, got_b;
  std::vector<std::int64_t> at;
  for (std::int64_t i = 0; i < 40; ++i) at.push_back(i * 7919 * 131 % (in * out));
  for (const auto i : at) got.push_back(all[static_cast<std::size_t>(i)]);
  for (const auto i : at) got_b.push_back(all_b[static_cast<std::size_t>(i % out)]);
  const auto zero = [](auto, auto) { return 0; };
  const auto place = [&](auto s) { return at[static_cast<std::size_t>(s)]; };
  const auto term = [&](auto, auto s, auto r) {
    return double(x(r, place(s) / out)) * double(dy(r, place(s) % out));
  };
  const auto term_b = [&](auto, auto s, auto r) { return double(dy(r, place(s) % out)); };
  // The tensor cores cut off below the last place instead of rounding: an error that grows with the
  // rows of a part.
  if constexpr (std::is_same_v<A, float>)
    expect_good<A>(sums<float>(1, 40, R, term, zero), got, sums<double>(1, 40, R, term, zero),
                   "dweight");
  else
    EXPECT_LE(relative_l2(got, sums<double>(1, 40, R, term, zero)), bound) << "dweight";
  expect_good<A>(sums<float>(1, 40, R, term_b, zero), got_b, sums<double>(1, 40, R, term_b, zero),
                 "dbias");
}

class LinearGpuLargeTest : public test::GpuTest {};

TEST_F(LinearGpuLargeTest, ModelShapes) {
  samples_match<bf16>(49152, 512, 2048);
  samples_match<bf16>(49152, 2048, 512);
  samples_match<bf16>(49152, 512, 1536);
  samples_match<fp16>(49152, 256, 512);
  samples_match<bf16>(49152, 256, 256);
  samples_match<float>(49152, 256, 512);
}

TEST_F(LinearGpuLargeTest, MoreElementsThan31Bits) {
  samples_match<bf16>(1'100'000, 2048, 256, 3e-4);
}

// All outputs of all operations, bit for bit.
template <class A>
void repeats(std::int64_t R, std::int64_t in, std::int64_t out, int times) {
  LinearContext context;
  const Periodic<A> x(R, in, 21), dy(R, out, 22), w(in, out, 23);
  const auto bias = to_device(random_normal<float>(out, 24));
  std::vector<std::vector<A>> first;
  std::vector<std::vector<float>> first_sums;
  for (int i = 0; i < times; ++i) {
    const auto y = poisoned_device<A>(R * out), pre = poisoned_device<A>(R * out);
    const auto dpre = poisoned_device<A>(R * in), again = poisoned_device<A>(R * in);
    const auto dw = poisoned_device<float>(in * out), db = poisoned_device<float>(out);
    linear_activation<A>(context, nullptr,
                         {x.view(), w.view(), bias.vector(), pre.matrix(R, out), y.matrix(R, out)});
    linear_activation_gradient<A>(
        context, nullptr, {dy.view(), w.view(), x.view(), dpre.matrix(R, in), again.matrix(R, in)});
    linear_weight_gradient<A>(context, nullptr,
                              {x.view(), dy.view(), dw.matrix(in, out), db.vector()});
    const std::vector<std::vector<A>> got{to_host(y), to_host(pre), to_host(dpre), to_host(again)};
    const std::vector<std::vector<float>> got_sums{to_host(dw), to_host(db)};
    if (i == 0) first = got, first_sums = got_sums;
    for (std::size_t o = 0; o < got.size(); ++o)
      ASSERT_EQ(std::memcmp(got[o].data(), first[o].data(), got[o].size() * sizeof(A)), 0)
          << "output " << o << ", run " << i;
    for (std::size_t o = 0; o < got_sums.size(); ++o)
      ASSERT_EQ(std::memcmp(got_sums[o].data(), first_sums[o].data(), got_sums[o].size() * 4), 0)
          << "sum " << o << ", run " << i;
  }
}

TEST_F(LinearGpuLargeTest, BitsRepeat) {
  repeats<bf16>(2000, 256, 512, 250);
  repeats<fp16>(1500, 264, 512, 50);
  repeats<float>(2000, 256, 512, 50);
  repeats<bf16>(49152, 512, 512, 10);
}

TEST(LinearSplitTest, PartsCoverAllRows) {
  const SplitCosts costs{128, 128, 17.7e3};
  for (const std::int64_t rows : {1, 63, 64, 1000, 49152, 1'100'001})
    for (const std::int64_t in : {8, 256, 512, 2048})
      for (const std::int64_t most : {std::int64_t{2048}, std::int64_t{1} << 40}) {
        SplitCosts c = costs;
        c.most_rows = most;
        const RowSplit s = split_rows(rows, in, 512, 132, std::int64_t{8} << 20, c);
        EXPECT_LT((s.parts - 1) * s.chunk, rows);
        EXPECT_GE(s.parts * s.chunk, rows);
        EXPECT_TRUE(s.parts == 1 || s.parts * in * 512 <= std::int64_t{8} << 20);
        if (most == 2048 && in == 256 && rows == 49152) {
          EXPECT_LE(s.chunk, 2048);
        }
      }
  EXPECT_EQ(split_rows(49152, 512, 512, 132, std::int64_t{8} << 20, costs).parts, 8);
  const SplitCosts dear{.tile_rows = 128, .tile_cols = 128, .bytes_per_row = 1, .most_rows = 768};
  EXPECT_EQ(split_rows(1100, 512, 384, 132, std::int64_t{8} << 20, dear).parts, 2);
  EXPECT_EQ(split_rows(49152, 2048, 512, 132, std::int64_t{8} << 20, dear).parts, 8);
}

}  // namespace

}  // namespace longstride::ops::cuda
