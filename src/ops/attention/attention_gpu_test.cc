// Attention forward on a GPU against the formula in float64, at most as far from it as the formula
// with P and O rounded. Rows as a layer has them, [q | k | v], or at odd places between poison.
#include <gtest/gtest.h>

#include <cstring>
#include <type_traits>

#include "device/gpu_test_util.h"
#include "ops/attention/attention_cuda.h"
#include "ops/attention/attention_test_util.h"
#include "tensor/fp16.h"

namespace longstride::ops::cuda {

namespace {

using test::Problem;
using test::Shape;
using test::Strided;

using AttentionGpu = test::GpuTest;

template <class A>
float rounded(double x) {
  return static_cast<float>(A(static_cast<float>(x)));
}

template <class A>
constexpr const char* kName = std::is_same_v<A, float>  ? "float"
                              : std::is_same_v<A, bf16> ? "bf16"
                                                        : "fp16";

enum class Rows { packed, gaps };  // gaps: row strides and addresses at odd places

struct Forward {
  std::vector<double> out, lse;
};

// Whether a NaN in keys that no query sees stays there: the Hopper kernels read whole tiles.
bool poison_unseen() { return !device::is_hopper(); }

// The operation on device memory that is a NaN wherever nobody has to read or write.
template <class A>
class Device {
 public:
  Device(const AttentionPlan& plan, const Problem<double>& problem, Rows rows)
      : shape_(problem.shape), plan_(plan) {
    const std::int64_t qk = shape_.heads * shape_.qk_width, v = shape_.heads * shape_.v_width;
    const std::int64_t gap = rows == Rows::gaps ? 3 : 0;
    first_ = rows == Rows::gaps ? 1 : 0;
    const std::int64_t stride = 2 * qk + v + gap;
    const std::int64_t positions = shape_.batch * shape_.length;
    std::vector<A> inputs(static_cast<std::size_t>(first_ + positions * stride),
                          A(std::numeric_limits<float>::quiet_NaN()));
    const auto fill = [&](const Strided<double>& from, std::int64_t column) {
      const auto& x = from.heads;
      for (std::int64_t b = 0; b < x.batch; ++b)
        for (std::int64_t i = 0; i < x.length; ++i)
          for (std::int64_t c = 0; c < x.heads * x.width; ++c)
            inputs[static_cast<std::size_t>(first_ + (b * x.length + i) * stride + column + c)] =
                A(static_cast<float>(x.at(b, i, 0)[c]));
    };
    fill(problem.q, 0), fill(problem.k, qk), fill(problem.v, 2 * qk);
    inputs_ = test::to_device(inputs);
    const auto view = [&](std::int64_t column, std::int64_t width) {
      return Heads<const A>{inputs_.data() + first_ + column,
                            shape_.batch,
                            shape_.length,
                            shape_.heads,
                            width,
                            stride};
    };
    out_ = test::poisoned_device<A>(first_ + positions * (v + gap));
    lse_ = test::poisoned_device<float>(positions * shape_.heads);
    op_ = {
        &plan_,
        view(0, shape_.qk_width),
        view(qk, shape_.qk_width),
        view(2 * qk, shape_.v_width),
        {out_.data() + first_, shape_.batch, shape_.length, shape_.heads, shape_.v_width, v + gap},
        lse_.vector(),
        static_cast<float>(problem.scale)};
  }

  void launch() { attention(nullptr, op_); }
  std::vector<A> bits() {
    launch();
    return test::to_host(out_);
  }

  Forward operator()() {
    const std::vector<A> array = bits();
    Forward got;
    std::size_t disturbed = 0;
    const std::int64_t width = shape_.heads * shape_.v_width, stride = op_.out.row_stride;
    for (std::int64_t n = 0; n < static_cast<std::int64_t>(array.size()); ++n) {
      const auto value = static_cast<float>(array[static_cast<std::size_t>(n)]);
      if (n >= first_ && (n - first_) % stride < width)
        got.out.push_back(value);
      else
        disturbed += !std::isnan(value);
    }
    EXPECT_EQ(disturbed, 0u) << "memory beside the rows was written";
    for (const float l : test::to_host(lse_)) got.lse.push_back(l);
    return got;
  }

 private:
  Shape shape_;
  DevicePlan plan_;
  std::int64_t first_ = 0;
  device::DeviceBuffer<A> inputs_, out_;
  device::DeviceBuffer<float> lse_;
  Attention<A> op_;
};

template <class A>
void round_inputs(Problem<double>& problem) {
  for (auto* x : {&problem.q, &problem.k, &problem.v})
    for (double& value : x->data) value = rounded<A>(value);
}

Forward exact(const Problem<double>& problem) {
  Strided<double> out(problem.shape, problem.shape.v_width);
  auto lse =
      test::poisoned<double>(problem.shape.batch * problem.shape.heads * problem.shape.length);
  problem.forward<true>(out, lse);
  return {out.packed(), lse};
}

// In float, with P and O rounded to A.
template <class A>
Forward plain(const Problem<double>& problem) {
  const Shape& shape = problem.shape;
  Forward result = exact(problem);
  std::size_t n = 0;
  const auto scale = static_cast<float>(problem.scale);
  for (std::int64_t b = 0; b < shape.batch; ++b)
    for (std::int64_t i = 0; i < shape.length; ++i)
      for (std::int64_t h = 0; h < shape.heads; ++h) {
        const auto keys = ref::attended(*problem.plan, h, i);
        std::vector<float> s, out(static_cast<std::size_t>(shape.v_width));
        float max = -std::numeric_limits<float>::infinity(), sum = 0;
        for (const Position j : keys) {
          float dot = 0;
          for (std::int64_t c = 0; c < shape.qk_width; ++c)
            dot += static_cast<float>(problem.q.heads.at(b, i, h)[c]) *
                   static_cast<float>(problem.k.heads.at(b, j, h)[c]);
          s.push_back(dot * scale);
          max = std::max(max, s.back());
        }
        for (std::size_t k = 0; k < keys.size(); ++k) {
          const float p = std::exp(s[k] - max);
          sum += p;
          for (std::size_t c = 0; c < out.size(); ++c)
            out[c] += rounded<A>(p) * static_cast<float>(problem.v.heads.at(b, keys[k], h)[c]);
        }
        for (const float x : out) result.out[n++] = sum == 0 ? 0 : rounded<A>(x / sum);
        auto& lse = result.lse[static_cast<std::size_t>((b * shape.heads + h) * shape.length + i)];
        lse = sum == 0 ? -std::numeric_limits<float>::infinity() : max + std::log(sum);
      }
  return result;
}

// Rows without keys have L = -inf in both; they are taken out.
void expect_same_keyless(std::vector<double>& got, std::vector<double>& want) {
  for (std::size_t n = 0; n < want.size(); ++n) {
    if (!std::isinf(want[n])) continue;
    ASSERT_EQ(got[n], want[n]) << "lse of a row without keys, " << n;
    got[n] = want[n] = 0;
  }
}

// NaN in the keys and values that no query of the sequence sees.
void poison(const AttentionPlan& plan, Problem<double>& problem) {
  const auto& shape = problem.shape;
  for (std::int64_t h = 0; h < shape.heads; ++h) {
    std::vector<bool> seen(static_cast<std::size_t>(shape.length));
    for (Position i = 0; i < shape.length; ++i)
      for (const Position j : ref::attended(plan, h, i)) seen[static_cast<std::size_t>(j)] = true;
    for (std::int64_t b = 0; b < shape.batch; ++b)
      for (Position j = 0; j < shape.length; ++j)
        if (!seen[static_cast<std::size_t>(j)])
          for (auto* x : {&problem.k, &problem.v})
            std::fill_n(x->heads.at(b, j, h), x->heads.width,
                        std::numeric_limits<double>::quiet_NaN());
  }
}

// The most that a head has: one for each column, one for all the rest.
std::int64_t passes(const AttentionPlan& plan) {
  std::int64_t most = 0;
  for (const HeadPattern& head : plan.patterns) {
    std::int64_t columns = 0;
    for (const Part& part : head.parts) columns += std::holds_alternative<Column>(part);
    const auto all = static_cast<std::int64_t>(head.parts.size());
    most = std::max(most, columns + (columns < all));
  }
  return most;
}

template <class A>
void expect_formula(const AttentionPlan& plan, const Shape& shape, std::uint64_t seed, Rows rows,
                    double sharpness = 1, double scale_sign = 1) {
  SCOPED_TRACE(testing::Message() << kName<A> << " " << test::name_of(plan) << " B " << shape.batch
                                  << " N " << shape.length << " d " << shape.qk_width << ", "
                                  << shape.v_width << (rows == Rows::gaps ? " with gaps" : ""));
  Problem<double> problem(plan, shape, seed, sharpness);
  problem.scale *= scale_sign;
  round_inputs<A>(problem);
  Forward truth = exact(problem), in_a = plain<A>(problem);
  if (poison_unseen()) poison(plan, problem);
  Forward got = Device<A>(plan, problem, rows)();
  expect_same_keyless(got.lse, truth.lse);
  for (double& l : in_a.lse)
    if (std::isinf(l)) l = 0;
  if constexpr (std::is_same_v<A, float>) {
    EXPECT_LE(test::relative_l2(got.out, truth.out), 2e-6) << "out";
    EXPECT_LE(test::relative_l2(got.lse, truth.lse), 2e-6) << "lse";
  } else {
    // Every pass of a union rounds O once; the bound allows for two.
    if (passes(plan) <= 2) {
      EXPECT_TRUE(test::as_good_as<float>(in_a.out, got.out, truth.out)) << "out";
    }
    EXPECT_LE(test::relative_l2(got.out, truth.out),
              1.5 * test::relative_l2(in_a.out, truth.out) + 1e-6)
        << "out";
    EXPECT_LE(test::relative_l2(got.lse, truth.lse), 2e-6) << "lse";
  }
}

void expect_formula(const AttentionPlan& plan, const Shape& shape, std::uint64_t seed,
                    double sharpness = 1) {
  const Rows rows = seed % 3 == 0 ? Rows::gaps : Rows::packed;
  expect_formula<bf16>(plan, shape, seed, rows, sharpness);
  expect_formula<fp16>(plan, shape, seed, rows, sharpness);
  expect_formula<float>(plan, shape, seed, rows, sharpness);
}

TEST_F(AttentionGpu, MatchesTheFormulaForEachPart) {
  for (const std::string& spec : test::typical_specs())
    for (const std::uint64_t seed : {1, 3})
      expect_formula(test::plan_of(spec, 2, 133), {2, 133, 2, 32, 16}, seed);
}

// Few and short, but all kernels: for tools under which they take a hundred times as long.
TEST_F(AttentionGpu, Small) {
  std::uint64_t seed = 0;
  for (const std::string& spec : test::typical_specs()) {
    const AttentionPlan plan = test::plan_of(spec, 2, 77);
    const Shape shape{1, 70, 2, 16, 24};
    if (++seed % 3 == 0) expect_formula<float>(plan, shape, seed, Rows::packed);
    if (seed % 3 == 1) expect_formula<bf16>(plan, shape, seed, Rows::packed);
    if (seed % 3 == 2) expect_formula<fp16>(plan, shape, seed, Rows::gaps);
  }
  for (const auto& [qk, v] : {std::pair(32, 32), {64, 64}, {64, 128}, {128, 128}})
    for (const std::string spec : {"fixed(32, 8)", "local(40)", "row(32), column(9)"})
      expect_formula<bf16>(test::plan_of(spec, 2, 150), {1, 140, 2, qk, v}, ++seed, Rows::packed);
}

TEST_F(AttentionGpu, MatchesTheFormulaForEachWidth) {
  const std::pair<std::int64_t, std::int64_t> widths[] = {
      {16, 16},   {24, 40},   {32, 32}, {64, 64}, {64, 128}, {40, 96},   {128, 128}, {128, 64},
      {128, 256}, {256, 256}, {200, 8}, {1, 3},   {17, 71},  {136, 136}, {8, 129},   {72, 16}};
  std::uint64_t seed = 0;
  for (const auto& [qk, v] : widths) {
    expect_formula(test::plan_of("strided(12), fixed(16, 4)", 2, 150), {1, 147, 2, qk, v}, ++seed);
    expect_formula(test::plan_of("dense, column(3)", 2, 330), {1, 330, 2, qk, v}, ++seed);
    expect_formula(test::plan_of("column(4), column(11)", 2, 330), {1, 330, 2, qk, v}, ++seed);
  }
}

TEST_F(AttentionGpu, MatchesTheFormulaForAnyLength) {
  std::uint64_t seed = 0;
  for (const std::int64_t length : {1, 2, 15, 16, 17, 31, 63, 64, 65, 127, 128, 129, 200, 260})
    expect_formula(test::plan_of("strided(11), fixed(9, 2)", 2, length + 7 * (length % 3)),
                   {2, length, 2, 32, 32}, ++seed, 2);
}

TEST_F(AttentionGpu, MatchesTheFormulaForRandomUnions) {
  test::Dice dice(15);
  for (std::uint64_t seed = 0; seed < 150; ++seed) {
    const std::int64_t length = dice.in(1, 220), heads = dice.in(1, 3);
    std::vector<HeadPattern> kinds;
    for (std::int64_t h = 0; h < heads; ++h) kinds.push_back(test::random_head(dice));
    const AttentionPlan plan(kinds, length + dice.in(0, 40));
    const Shape shape{dice.in(1, 2), length, heads, 8 * dice.in(1, 6), 8 * dice.in(1, 6)};
    expect_formula(plan, shape, seed, 2);
  }
}

// Many tiles of keys, tiles of 128 queries, rows whose largest score comes late.
TEST_F(AttentionGpu, MatchesTheFormulaOverManyTiles) {
  std::uint64_t seed = 0;
  for (const std::string spec :
       {"dense", "local(300)", "column(2)", "row(500)", "summary(10, 7, 0)", "previous_row(250)",
        "global(200)", "random(9, 1)", "fixed(128, 32)", "local(128)", "column(8)", "strided(25)",
        "dense", "column(4)", "dense"}) {
    const std::int64_t width = 32 << seed % 3;
    expect_formula(test::plan_of(spec, 1, 530), {1, 530, 1, width, width}, ++seed, 4);
  }
}

TEST_F(AttentionGpu, TakesAnyScale) {
  const AttentionPlan plan = test::plan_of("strided(7)", 1, 90);
  for (const double sign : {-1.0, 0.0, 12.0}) {
    expect_formula<bf16>(plan, {1, 90, 1, 16, 16}, 4, Rows::packed, 1, sign);
    expect_formula<float>(plan, {1, 90, 1, 16, 16}, 4, Rows::packed, 1, sign);
  }
}

TEST_F(AttentionGpu, RepeatsItsBits) {
  const AttentionPlan plan = test::plan_of("strided(24), fixed(64, 8), random(3, 1, 32)", 3, 500);
  const auto repeat = [&](auto type, const Shape& shape) {
    using A = decltype(type);
    const Problem<double> problem(plan, shape, 9);
    Device<A> run(plan, problem, Rows::packed);
    const std::vector<A> first = run.bits();
    for (int n = 0; n < 250; ++n) {
      const std::vector<A> again = run.bits();
      ASSERT_EQ(std::memcmp(again.data(), first.data(), first.size() * sizeof(A)), 0)
          << kName<A> << ", repeat " << n;
    }
  };
  repeat(bf16(), {2, 493, 3, 64, 64});
  repeat(fp16(), {1, 500, 3, 32, 32});
  repeat(float(), {1, 300, 3, 16, 16});
}

// A million positions, 2^31 elements between the first row and the last: rows are sampled.
TEST_F(AttentionGpu, ReachesBeyondTwoToThe31) {
  constexpr std::int64_t kLength = 1 << 20, kStride = 2112, kQk = 32, kV = 24, kHeads = 2;
  constexpr std::int64_t kColumns = kHeads * (2 * kQk + kV);
  std::vector<bf16> rows(static_cast<std::size_t>(kLength * kColumns));
  std::uint32_t state = 1;
  for (bf16& x : rows) {
    state = state * 1664525u + 1013904223u;
    x = bf16(static_cast<float>(static_cast<std::int32_t>(state)) * 0x1p-30f);
  }
  const AttentionPlan plan = test::plan_of("strided(1024)", kHeads, kLength);
  const DevicePlan device_plan(plan);
  device::DeviceBuffer<bf16> inputs(kLength * kStride);
  auto out = test::poisoned_device<bf16>(kLength * kStride);
  auto lse = test::poisoned_device<float>(kHeads * kLength);
  ASSERT_GT(inputs.size(), std::int64_t{1} << 31);
  device::check(cudaMemcpy2D(inputs.data(), kStride * 2, rows.data(), kColumns * 2, kColumns * 2,
                             kLength, cudaMemcpyHostToDevice),
                "test input");
  const auto view = [&](std::int64_t column, std::int64_t width) {
    return Heads<const bf16>{inputs.data() + column, 1, kLength, kHeads, width, kStride};
  };
  attention(nullptr, Attention<bf16>{&device_plan,
                                     view(0, kQk),
                                     view(kHeads * kQk, kQk),
                                     view(2 * kHeads * kQk, kV),
                                     {out.data(), 1, kLength, kHeads, kV, kStride},
                                     lse.vector(),
                                     0.5f});
  const std::vector<float> got_lse = test::to_host(lse);
  const auto at = [&](Position i, std::int64_t h, std::int64_t column, std::int64_t width) {
    return rows.data() + i * kColumns + column + h * width;
  };
  for (const Position i : {Position{0}, Position{1023}, Position{1024}, Position{70001},
                           kLength / 2 + 513, kLength - 1024, kLength - 2, kLength - 1})
    for (std::int64_t h = 0; h < kHeads; ++h) {
      std::vector<double> want(kV);
      double sum = 0;
      for (const Position j : ref::attended(plan, h, i)) {
        double s = 0;
        for (std::int64_t c = 0; c < kQk; ++c)
          s += static_cast<double>(static_cast<float>(at(i, h, 0, kQk)[c])) *
               static_cast<double>(static_cast<float>(at(j, h, kHeads * kQk, kQk)[c]));
        const double p = std::exp(0.5 * s);
        sum += p;
        for (std::int64_t c = 0; c < kV; ++c)
          want[static_cast<std::size_t>(c)] +=
              p * static_cast<double>(static_cast<float>(at(j, h, 2 * kHeads * kQk, kV)[c]));
      }
      std::vector<bf16> got(kV);
      device::check(
          cudaMemcpy(got.data(), out.data() + i * kStride + h * kV, kV * 2, cudaMemcpyDeviceToHost),
          "test output");
      std::vector<float> wide;
      for (const bf16 x : got) wide.push_back(static_cast<float>(x));
      for (double& x : want) x /= sum;
      EXPECT_LE(test::relative_l2(wide, want), 0x1p-7) << i << ", head " << h;
      EXPECT_NEAR(got_lse[static_cast<std::size_t>(h * kLength + i)], std::log(sum), 1e-5) << i;
    }
}

TEST_F(AttentionGpu, RefusesWhatDoesNotFit) {
  const AttentionPlan plan = test::plan_of("dense", 2, 20);
  const DevicePlan device_plan(plan);
  device::DeviceBuffer<bf16> rows(20 * 3 * 1024);
  device::DeviceBuffer<float> lse(2 * 20);
  const auto op = [&](std::int64_t length, std::int64_t heads, std::int64_t width) {
    const Heads<bf16> x{rows.data(), 1, length, heads, width, heads * width};
    return Attention<bf16>{&device_plan, x, x, x, x, lse.vector(), 1};
  };
  attention(nullptr, op(20, 2, 16));
  EXPECT_THROW(attention(nullptr, op(21, 2, 16)), Error);
  EXPECT_THROW(attention(nullptr, op(20, 1, 16)), Error);
  EXPECT_THROW(attention(nullptr, op(20, 2, 257)), Error);
  auto narrow = op(20, 2, 16);
  narrow.out.row_stride = 31;
  EXPECT_THROW(attention(nullptr, narrow), Error);
}

}  // namespace

}  // namespace longstride::ops::cuda
