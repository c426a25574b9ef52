// The embedding on the GPU: forward has the bits of the CPU, the gradients are held to float64.
#include <gtest/gtest.h>

#include <numeric>

#include "as_good_as.h"
#include "ops/embedding/embedding_cuda.h"
#include "ops/embedding/embedding_ref.h"
#include "ops/gpu_rows_test_util.h"

namespace longstride::ops::cuda {

namespace {

using test::as_good_as, test::DeviceRows, test::Gaps, test::random_bytes, test::random_normal;
using test::relative_l2, test::same_bits, test::view;

struct Case {
  std::int64_t B, N, d;
  std::vector<std::int64_t> axes;
  std::uint32_t symbols = 256;  // tokens are below
  Gaps gaps = {};
  friend void PrintTo(const Case& c, std::ostream* out) {
    *out << c.B << "x" << c.N << "x" << c.d << ", axes";
    for (const auto extent : c.axes) *out << " " << extent;
    *out << ", " << c.symbols << " symbols, gaps " << c.gaps.behind << " and " << c.gaps.before;
  }
};

// The tables, or what they held before their gradients were added.
struct Tables {
  explicit Tables(const Case& c)
      : bytes(random_normal<float>(256 * c.d, 1)), start(random_normal<float>(c.d, 2)) {
    for (const auto extent : c.axes)
      axes.push_back(random_normal<float>(extent * c.d, 3 + axes.size()));
  }
  std::vector<float> bytes, start;
  std::vector<std::vector<float>> axes;
};

struct DeviceTables {
  DeviceTables(const Case& c, const Tables& t)
      : bytes(256, c.d, t.bytes, c.gaps), start(test::to_device(t.start)) {
    for (std::size_t a = 0; a < c.axes.size(); ++a)
      axes.emplace_back(c.axes[a], c.d, t.axes[a], c.gaps);
  }
  template <class T>
  std::vector<Matrix<T>> axis_matrices() const {
    std::vector<Matrix<T>> matrices;
    for (const auto& axis : axes) matrices.push_back(axis.matrix());
    return matrices;
  }
  // All values, one table behind the other.
  std::vector<float> values() const {
    auto all = bytes.values();
    for (const auto& axis : axes) {
      const auto more = axis.values();
      all.insert(all.end(), more.begin(), more.end());
    }
    const auto last = test::to_host(start);
    all.insert(all.end(), last.begin(), last.end());
    return all;
  }
  bool gaps_untouched() const {
    return std::all_of(axes.begin(), axes.end(),
                       [](auto& axis) { return axis.gaps_untouched(); }) &&
           bytes.gaps_untouched();
  }

  DeviceRows<float> bytes;
  device::DeviceBuffer<float> start;
  std::vector<DeviceRows<float>> axes;
};

template <class Real>
std::vector<Real> gradient(const Case& c, const Tables& before,
                           const std::vector<std::uint8_t>& tokens, const std::vector<float>& dy) {
  std::vector<Real> bytes(before.bytes.begin(), before.bytes.end());
  std::vector<Real> start(before.start.begin(), before.start.end());
  std::vector<std::vector<Real>> axes;
  for (const auto& axis : before.axes) axes.emplace_back(axis.begin(), axis.end());
  const std::vector<Real> from(dy.begin(), dy.end());
  ops::EmbeddingBackward<Real> op{.tokens = tokens.data(),
                                  .batch = c.B,
                                  .length = c.N,
                                  .dy = matrix<const Real>(from.data(), c.B * c.N, c.d),
                                  .dbytes = matrix(bytes.data(), 256, c.d),
                                  .daxes = {},
                                  .dstart = view(start)};
  for (std::size_t a = 0; a < axes.size(); ++a)
    op.daxes.push_back(matrix(axes[a].data(), c.axes[a], c.d));
  ref::embedding_backward(op);
  for (const auto& axis : axes) bytes.insert(bytes.end(), axis.begin(), axis.end());
  bytes.insert(bytes.end(), start.begin(), start.end());
  return bytes;
}

class EmbeddingGpuTest : public test::GpuTest, public testing::WithParamInterface<Case> {};

TEST_P(EmbeddingGpuTest, ForwardHasTheBitsOfTheFormula) {
  const Case c = GetParam();
  const Tables t(c);
  const DeviceTables tables(c, t);
  const auto tokens = random_bytes(c.B * c.N, 9, c.symbols);
  const auto on_device = test::to_device(tokens);
  const DeviceRows<float> y(c.B * c.N, c.d, c.gaps);
  embedding(nullptr, {.tokens = on_device.data(),
                      .batch = c.B,
                      .length = c.N,
                      .bytes = tables.bytes.matrix(),
                      .axes = tables.axis_matrices<const float>(),
                      .start = tables.start.vector(),
                      .y = y.matrix()});
  std::vector<float> want(static_cast<std::size_t>(c.B * c.N * c.d));
  ops::Embedding<float> op{.tokens = tokens.data(),
                           .batch = c.B,
                           .length = c.N,
                           .bytes = matrix(t.bytes.data(), 256, c.d),
                           .axes = {},
                           .start = view(t.start),
                           .y = matrix(want.data(), c.B * c.N, c.d)};
  for (std::size_t a = 0; a < c.axes.size(); ++a)
    op.axes.push_back(matrix(t.axes[a].data(), c.axes[a], c.d));
  ref::embedding(op);
  EXPECT_TRUE(same_bits(y.values(), want));
  EXPECT_TRUE(y.gaps_untouched());
}

TEST_P(EmbeddingGpuTest, BackwardMatchesFloat64AndItself) {
  const Case c = GetParam();
  const Tables before(c);
  const auto tokens = random_bytes(c.B * c.N, 9, c.symbols);
  const auto on_device = test::to_device(tokens);
  const auto values = random_normal<float>(c.B * c.N * c.d, 10);
  const DeviceRows<float> dy(c.B * c.N, c.d, values, c.gaps);
  const std::int64_t scratch = embedding_backward_scratch(c.B, c.N, c.d, c.axes);
  std::vector<float> first;
  for (int repeat = 0; repeat < 5; ++repeat) {
    const DeviceTables tables(c, before);
    auto memory = test::poisoned_device<float>(scratch + 4);  // the last four stay as they are
    embedding_backward(nullptr, {.tokens = on_device.data(),
                                 .batch = c.B,
                                 .length = c.N,
                                 .dy = dy.matrix(),
                                 .dbytes = tables.bytes.matrix(),
                                 .daxes = tables.axis_matrices<float>(),
                                 .dstart = tables.start.vector(),
                                 .scratch = {memory.data(), scratch}});
    const auto got = tables.values();
    EXPECT_TRUE(tables.gaps_untouched());
    const auto behind = test::to_host(memory);
    EXPECT_TRUE(std::all_of(behind.end() - 4, behind.end(), [](float x) { return std::isnan(x); }));
    if (repeat > 0) {
      EXPECT_TRUE(same_bits(got, first));
      continue;
    }
    first = got;
    const auto truth = gradient<double>(c, before, tokens, values);
    EXPECT_TRUE(as_good_as<float>(gradient<float>(c, before, tokens, values), got, truth));
    EXPECT_LE(relative_l2(got, truth), 2e-6);
  }
}

INSTANTIATE_TEST_SUITE_P(
    Shapes, EmbeddingGpuTest,
    testing::Values(Case{1, 1, 16, {1}}, Case{1, 2, 16, {1}}, Case{3, 1, 4, {}},
                    Case{2, 57, 32, {60}}, Case{1, 129, 48, {128}}, Case{3, 300, 512, {400}},
                    Case{40, 33, 64, {32}, 3}, Case{2, 256, 256, {8, 11, 3}},
                    Case{1, 256, 64, {8, 11, 3}}, Case{3, 97, 20, {3, 4, 2, 4}},
                    Case{1, 3000, 64, {3000}, 1}, Case{5, 1024, 32, {2, 700}, 2},
                    Case{2, 70, 30, {5, 14}, 256, {3, 1}}, Case{1, 70, 32, {5, 14}, 9, {8, 4}},
                    Case{2, 20, 1, {20}}, Case{1, 5000, 8, {5, 1000}, 200}));

class EmbeddingGpu : public test::GpuTest {};

TEST_F(EmbeddingGpu, BeyondTwoToThe31) {
  constexpr std::int64_t kStride = (std::int64_t{1} << 29) + 4, kRows = 6, kCols = 32;
  if (!test::device_has(4 * kRows * kStride)) GTEST_SKIP() << "the card is too small";
  const Case c{2, 3, kCols, {2}};
  const Tables t(c);
  const DeviceTables tables(c, t), near(c, t), far(c, t);
  const auto tokens = test::to_device(random_bytes(kRows, 9));
  const device::DeviceBuffer<float> memory(kRows * kStride);
  const device::DeviceBuffer<float> scratch(embedding_backward_scratch(2, 3, kCols, {2}));
  const Matrix<float> wide = {memory.data(), kRows, kCols, kStride};
  const DeviceRows<float> y(kRows, kCols), back(kRows, kCols);
  for (const auto& to : {wide, y.matrix()})
    embedding(nullptr, {.tokens = tokens.data(),
                        .batch = 2,
                        .length = 3,
                        .bytes = tables.bytes.matrix(),
                        .axes = tables.axis_matrices<const float>(),
                        .start = tables.start.vector(),
                        .y = to});
  for (std::int64_t r = 0; r < kRows; ++r)
    device::copy(nullptr, back.matrix().row(r), wide.row(r), kCols * 4);
  EXPECT_TRUE(same_bits(back.values(), y.values()));
  for (const auto* result : {&near, &far})
    embedding_backward(nullptr, {.tokens = tokens.data(),
                                 .batch = 2,
                                 .length = 3,
                                 .dy = result == &far ? wide : y.matrix(),
                                 .dbytes = result->bytes.matrix(),
                                 .daxes = result->axis_matrices<float>(),
                                 .dstart = result->start.vector(),
                                 .scratch = scratch.vector()});
  EXPECT_TRUE(same_bits(far.values(), near.values()));
}

TEST_F(EmbeddingGpu, RejectsWrongInputs) {
  const Case c{1, 9, 8, {2, 3}};
  const DeviceTables tables(c, Tables(c));
  const DeviceRows<float> y(9, 8);
  const auto tokens = test::to_device(random_bytes(9, 1));
  EXPECT_EQ(test::error_of([&] {
              embedding(nullptr, {.tokens = tokens.data(),
                                  .batch = 1,
                                  .length = 9,
                                  .bytes = tables.bytes.matrix(),
                                  .axes = tables.axis_matrices<const float>(),
                                  .start = tables.start.vector(),
                                  .y = y.matrix()});
            }),
            "embedding: the axes hold 6 positions, want 8");
}

}  // namespace

}  // namespace longstride::ops::cuda
