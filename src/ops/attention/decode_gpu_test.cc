#include <algorithm>

#include "device/gpu_test_util.h"
#include "ops/attention/attention_test_util.h"
#include "ops/attention/decode_cuda.h"

namespace longstride::ops::cuda {

namespace {

using test::Problem;
using test::Shape;

class DecodeGpuTest : public test::GpuTest {};

template <class A>
A narrow(double x) {
  return A(static_cast<float>(x));
}

template <class A>
double wide(A x) {
  return static_cast<double>(static_cast<float>(x));
}

// The problem with q, k and v as A holds them.
template <class A, class T>
void round_inputs(Problem<T>& problem) {
  for (auto* x : {&problem.q, &problem.k, &problem.v})
    for (T& value : x->data) value = static_cast<T>(wide(narrow<A>(static_cast<double>(value))));
}

template <class T>
std::vector<T> by_formula(const Problem<T>& problem) {
  test::Strided<T> out(problem.shape, problem.shape.v_width);
  auto lse = test::poisoned<T>(problem.shape.batch * problem.shape.heads * problem.shape.length);
  problem.template forward<true>(out, lse);
  return out.packed();
}

// Memory of NaNs but for the padding, which decode() takes for zero.
template <class A>
void poison_slots(const device::DeviceBuffer<A>& buffer, std::int64_t width) {
  const auto per_pack = static_cast<std::int64_t>(16 / sizeof(A));
  const std::int64_t stride = (width + per_pack - 1) / per_pack * per_pack;
  std::vector<A> values(static_cast<std::size_t>(buffer.size()));
  for (std::int64_t e = 0; e < buffer.size(); ++e)
    if (e % stride < width)
      values[static_cast<std::size_t>(e)] = narrow<A>(std::numeric_limits<double>::quiet_NaN());
  device::copy(nullptr, buffer.data(), values.data(), buffer.bytes());
  device::synchronize(nullptr);
}

// Every position of every sequence decoded out of a growing cache, in rows [q | k | v]; sequence b
// starts `lag` * b steps late and repeats position 0 until then. out [B, N, H d_v].
template <class A, class T>
std::vector<A> run_decode(const AttentionPlan& plan, const Problem<T>& problem, std::int64_t lag) {
  const Shape& shape = problem.shape;
  const std::int64_t B = shape.batch, N = shape.length, steps = N + lag * (B - 1);
  const std::int64_t qk = shape.heads * shape.qk_width, v = shape.heads * shape.v_width;
  const std::int64_t row = 2 * qk + v + 3;
  std::vector<A> rows(static_cast<std::size_t>(steps * B * row),
                      narrow<A>(std::numeric_limits<double>::quiet_NaN()));
  std::vector<std::int32_t> positions;
  for (std::int64_t t = 0; t < steps; ++t)
    for (std::int64_t b = 0; b < B; ++b) {
      const std::int64_t i = std::clamp<std::int64_t>(t - lag * b, 0, N - 1);
      positions.push_back(static_cast<std::int32_t>(i));
      A* to = rows.data() + (t * B + b) * row;
      for (const auto* x : {&problem.q, &problem.k, &problem.v})
        for (std::int64_t c = 0; c < shape.heads * x->heads.width; ++c)
          *to++ = narrow<A>(static_cast<double>(x->heads.at(b, i, 0)[c]));
    }
  const DecodePlan device_plan(plan);
  const DeviceKvCache<A> cache(device_plan, B, shape.qk_width, shape.v_width);
  poison_slots(cache.keys, shape.qk_width);
  poison_slots(cache.values, shape.v_width);
  DecodeScratch scratch(B, shape.heads, device_plan.pieces(), shape.v_width);
  const auto in = test::to_device(rows);
  const auto at = test::to_device(positions);
  const auto out = test::poisoned_device<A>(steps * B * v);
  for (std::int64_t t = 0; t < steps; ++t) {
    const A* const now = in.data() + t * B * row;
    decode(scratch, nullptr,
           Decode<A>{&device_plan,
                     &cache,
                     at.data() + t * B,
                     {now, B, qk, row},
                     {now + qk, B, qk, row},
                     {now + 2 * qk, B, v, row},
                     {out.data() + t * B * v, B, v, v},
                     static_cast<float>(problem.scale)});
  }
  const std::vector<A> all = test::to_host(out);
  std::vector<A> packed;
  for (std::int64_t b = 0; b < B; ++b)
    for (std::int64_t i = 0; i < N; ++i) {
      const auto from = all.begin() + ((i + lag * b) * B + b) * v;
      packed.insert(packed.end(), from, from + v);
    }
  return packed;
}

template <class A>
void expect_formula(const AttentionPlan& plan, const Shape& shape, std::uint64_t seed) {
  SCOPED_TRACE(test::name_of(plan));
  SCOPED_TRACE(testing::Message() << sizeof(A) << " bytes, d " << shape.qk_width << ", "
                                  << shape.v_width);
  Problem<double> exact(plan, shape, seed, 2);
  Problem<float> plain(plan, shape, seed, 2);
  round_inputs<A>(exact);
  round_inputs<A>(plain);
  const std::vector<double> truth = by_formula(exact);
  std::vector<double> got, formula;
  for (const A x : run_decode<A>(plan, exact, 3)) got.push_back(wide(x));
  for (const float x : by_formula(plain)) formula.push_back(wide(A(x)));
  EXPECT_TRUE(test::as_good_as<float>(formula, got, truth));
  if (sizeof(A) == sizeof(float)) {
    EXPECT_LE(test::relative_l2(got, truth), 2e-6);
  }
}

TEST_F(DecodeGpuTest, EachPartInBothTypes) {
  std::int64_t width = 3;
  for (const std::string& spec : test::typical_specs()) {
    const AttentionPlan plan = test::plan_of(spec, 2, 161);
    expect_formula<float>(plan, {2, 150, 2, width, 88 - width}, 1);
    expect_formula<bf16>(plan, {3, 150, 2, width, 88 - width}, 2);
    width += 5;
  }
}

// Few and short, but all kernels: for tools under which they take a hundred times as long.
TEST_F(DecodeGpuTest, Small) {
  for (const std::string& spec : test::typical_specs()) {
    const AttentionPlan plan = test::plan_of(spec, 2, 40);
    expect_formula<float>(plan, {1, 13, 2, 24, 40}, 1);
    expect_formula<bf16>(plan, {2, 13, 2, 40, 24}, 2);
  }
}

TEST_F(DecodeGpuTest, RandomUnions) {
  test::Dice dice(31);
  for (std::uint64_t seed = 0; seed < 100; ++seed) {
    const std::int64_t length = dice.in(1, 170), heads = dice.in(1, 3);
    std::vector<HeadPattern> kinds;
    for (std::int64_t h = 0; h < heads; ++h) kinds.push_back(test::random_head(dice));
    const AttentionPlan plan(kinds, length + dice.in(0, 30));
    const Shape shape{dice.in(1, 3), length, heads, dice.in(1, 70), dice.in(1, 70)};
    expect_formula<float>(plan, shape, seed);
    if (seed % 4 == 0) expect_formula<bf16>(plan, shape, seed);
  }
}

TEST_F(DecodeGpuTest, LongRowsInPiecesAndWideHeads) {
  const AttentionPlan plan = test::plan_of("dense, local(700), column(2), row(900)", 4, 1100);
  expect_formula<float>(plan, {1, 1000, 4, 64, 64}, 3);
  expect_formula<bf16>(plan, {1, 1000, 4, 64, 128}, 4);
  expect_formula<float>(plan, {1, 700, 4, 256, 256}, 5);
  expect_formula<bf16>(plan, {1, 700, 4, 256, 256}, 6);
}

TEST_F(DecodeGpuTest, SameBitsForAnyBatchAndEveryTime) {
  const AttentionPlan plan = test::plan_of("strided(12), fixed(64, 16)", 4, 700);
  const Shape five{5, 650, 4, 40, 24}, one{1, 650, 4, 40, 24};
  const Problem<float> batch(plan, five, 7);
  const auto want = run_decode<bf16>(plan, batch, 2);
  Problem<float> alone(plan, one, 8);
  const std::int64_t size = 650 * 4 * 24;
  for (std::int64_t b = 0; b < 5; ++b) {
    for (std::int64_t i = 0; i < 650; ++i) {
      std::copy_n(batch.q.heads.at(b, i, 0), 4 * 40, alone.q.heads.at(0, i, 0));
      std::copy_n(batch.k.heads.at(b, i, 0), 4 * 40, alone.k.heads.at(0, i, 0));
      std::copy_n(batch.v.heads.at(b, i, 0), 4 * 24, alone.v.heads.at(0, i, 0));
    }
    const auto got = run_decode<bf16>(plan, alone, 0);
    for (std::int64_t e = 0; e < size; ++e)
      ASSERT_EQ(got[static_cast<std::size_t>(e)].bits,
                want[static_cast<std::size_t>(b * size + e)].bits)
          << "sequence " << b << ", element " << e;
  }
}

TEST_F(DecodeGpuTest, CachesBeyondTwoToThe31Elements) {
  constexpr std::int64_t kSequences = 20, kWidth = 256, kLength = 1 << 19, kSteps = 6;
  const DecodePlan plan(test::plan_of("dense", 1, kLength));
  const DeviceKvCache<bf16> cache(plan, kSequences, kWidth, 8);
  ASSERT_GT((kSequences - 1) * plan.slots() * kWidth, std::int64_t{1} << 31);
  DecodeScratch scratch(kSequences, 1, plan.pieces(), 8);
  std::vector<bf16> last;
  for (std::int64_t t = 0; t < kSteps; ++t) {
    const auto numbers = test::random_normal<float>(2 * kWidth + 8, static_cast<std::uint64_t>(t));
    std::vector<bf16> rows;
    for (std::int64_t s = 0; s < kSequences; ++s)
      for (const float x : numbers) rows.push_back(bf16(x));
    const auto in = test::to_device(rows);
    const auto at = test::to_device(
        std::vector<std::int32_t>(static_cast<std::size_t>(kSequences), std::int32_t(t)));
    const auto out = test::poisoned_device<bf16>(kSequences * 8);
    constexpr std::int64_t kRow = 2 * kWidth + 8;
    decode(scratch, nullptr,
           Decode<bf16>{&plan,
                        &cache,
                        at.data(),
                        {in.data(), kSequences, kWidth, kRow},
                        {in.data() + kWidth, kSequences, kWidth, kRow},
                        {in.data() + 2 * kWidth, kSequences, 8, kRow},
                        out.matrix(kSequences, 8),
                        0.0625f});
    last = test::to_host(out);
    for (std::size_t e = 8; e < last.size(); ++e) ASSERT_EQ(last[e].bits, last[e % 8].bits) << e;
  }
}

TEST_F(DecodeGpuTest, BadArgumentsAreNamed) {
  const DecodePlan plan(test::plan_of("dense", 2, 10)), other(test::plan_of("local(4)", 2, 10));
  const DeviceKvCache<float> cache(plan, 2, 4, 4);
  DecodeScratch scratch(1, 2, 1, 4);
  const auto x = test::poisoned_device<float>(64);
  const auto at = test::to_device(std::vector<std::int32_t>{0, 0, 0});
  const auto error = [&](const DecodePlan& p, std::int64_t rows, std::int64_t cols) {
    const Matrix<const float> in{x.data(), rows, cols, cols};
    const Matrix<float> out{x.data(), rows, 8, 8};
    return test::error_of([&] {
      decode(scratch, nullptr,
             Decode<float>{&p, &cache, at.data(), in, in, {x.data(), rows, 8, 8}, out});
    });
  };
  EXPECT_EQ(error(plan, 3, 8), "decode: q 3, k 3, v 3, out 3 rows, want the same, 1 to 2");
  EXPECT_EQ(error(plan, 1, 6), "decode: q 6, k 6, v 8, out 8 columns, want 8, 8, 8, 8");
  EXPECT_EQ(error(other, 1, 8), "decode: the cache is that of another plan");
  EXPECT_EQ(error(plan, 2, 8), "decode: the scratch has 12 values, want 24");
  EXPECT_EQ(test::error_of([&] { DeviceKvCache<float>(plan, 1, 300, 4); }),
            "decode: widths of a head 300 and 4, want 1 to 256");
}

}  // namespace

}  // namespace longstride::ops::cuda
