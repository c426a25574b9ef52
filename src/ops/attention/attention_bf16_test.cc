// The vector kernels in bf16: against the formula in float64 on the same bf16 values, with float
// arithmetic on them and a rounded result as the bound.
#include <gtest/gtest.h>

#include "ops/attention/attention_cpu.h"
#include "ops/attention/attention_test_util.h"

namespace longstride::ops {

namespace {

using test::Problem;
using test::Result;
using test::Shape;
using test::Strided;

using AttentionBf16Test = test::OneThread;

float rounded(float x) { return static_cast<float>(bf16(x)); }

// A tensor in bf16, gaps and poison included.
struct Narrow {
  explicit Narrow(const Strided<float>& x) : heads{} {
    for (const float value : x.data) data.push_back(bf16(value));
    const auto& h = x.heads;
    heads = {data.data(), h.batch, h.length, h.heads, h.width, h.row_stride};
  }
  Narrow(const Narrow&) = delete;

  void widen(Strided<float>& to) const {
    for (std::size_t i = 0; i < data.size(); ++i) to.data[i] = static_cast<float>(data[i]);
  }

  std::vector<bf16> data;
  Heads<bf16> heads;
};

template <class T>
void round_inputs(Problem<T>& problem) {
  for (auto* x : {&problem.q, &problem.k, &problem.v, &problem.dout})
    for (T& value : x->data) value = static_cast<T>(rounded(static_cast<float>(value)));
}

// Inputs have bf16 values.
Result<float> run(const Problem<float>& problem) {
  const Shape& shape = problem.shape;
  const Narrow q(problem.q), k(problem.k), v(problem.v), dout(problem.dout);
  Strided<float> wide(shape, shape.v_width);
  const Narrow out(wide);
  Strided<float> dq(shape, shape.qk_width), dk(shape, shape.qk_width), dv(shape, shape.v_width);
  auto lse = test::poisoned<float>(shape.batch * shape.heads * shape.length);
  cpu::attention(Attention<bf16>{problem.plan, q.heads, k.heads, v.heads, out.heads,
                                 test::view(lse), problem.scale});
  const auto& kept = lse;
  cpu::attention_backward(AttentionBackward<bf16>{problem.plan, q.heads, k.heads, v.heads,
                                                  out.heads, dout.heads, test::view(kept), dq.heads,
                                                  dk.heads, dv.heads, problem.scale});
  out.widen(wide);
  return {wide.packed(), lse, dq.packed(), dk.packed(), dv.packed()};
}

// Float arithmetic, the result rounded.
Result<float> plain(const Problem<float>& problem) {
  const Shape& shape = problem.shape;
  Strided<float> out(shape, shape.v_width);
  Strided<float> dq(shape, shape.qk_width), dk(shape, shape.qk_width), dv(shape, shape.v_width);
  auto lse = test::poisoned<float>(shape.batch * shape.heads * shape.length);
  problem.forward<true>(out, lse);
  for (float& value : out.data) value = rounded(value);
  const auto& kept = lse;
  ref::attention_backward(AttentionBackward<float>{
      problem.plan, problem.q.heads, problem.k.heads, problem.v.heads, out.heads,
      problem.dout.heads, test::view(kept), dq.heads, dk.heads, dv.heads, problem.scale});
  return {out.packed(), lse, dq.packed(), dk.packed(), dv.packed()};
}

void expect_formula(const AttentionPlan& plan, const Shape& shape, std::uint64_t seed) {
  SCOPED_TRACE(test::name_of(plan));
  SCOPED_TRACE(testing::Message() << "d " << shape.qk_width << ", " << shape.v_width);
  Problem<double> exact(plan, shape, seed);
  Problem<float> problem(plan, shape, seed);
  round_inputs(exact);
  round_inputs(problem);
  const Result<double> truth = exact.formula();
  const Result<float> bound = plain(problem), got = run(problem);
  // Each part of a union rounds the result once more.
  std::size_t parts = 1;
  for (const HeadPlan& head : plan.kinds) parts = std::max(parts, head.parts.size());
  const auto close = [&](const char* what, const auto& g, const auto& p, const auto& t) {
    if (parts == 1) {
      EXPECT_TRUE(test::as_good_as<float>(p, g, t)) << what;
    }
    EXPECT_LE(test::relative_l2(g, t), 2 * test::relative_l2(p, t) + 1e-6) << what;
  };
  close("out", got.out, bound.out, truth.out);
  close("dq", got.dq, bound.dq, truth.dq);
  close("dk", got.dk, bound.dk, truth.dk);
  close("dv", got.dv, bound.dv, truth.dv);
  EXPECT_LE(test::worst(got.lse, truth.lse).error, 1e-5);
}

TEST_F(AttentionBf16Test, MatchesTheFormulaForEachPartOnEachInstructionSet) {
  test::for_each_target([] {
    std::int64_t width = 8;
    for (const std::string& spec : test::typical_specs()) {
      expect_formula(test::plan_of(spec, 2, 101), {1, 97, 2, width, 72 - width}, 1);
      width += 3;
    }
  });
}

TEST_F(AttentionBf16Test, MatchesTheFormulaForRandomUnions) {
  test::Dice dice(31);
  for (std::uint64_t seed = 0; seed < 60; ++seed) {
    const std::int64_t length = dice.in(1, 150), heads = dice.in(1, 3);
    std::vector<HeadPattern> kinds;
    for (std::int64_t h = 0; h < heads; ++h) kinds.push_back(test::random_head(dice));
    const AttentionPlan plan(kinds, length + dice.in(0, 40));
    expect_formula(plan, {dice.in(1, 2), length, heads, dice.in(1, 70), dice.in(1, 70)}, seed);
  }
}

TEST_F(AttentionBf16Test, BitsDoNotDependOnThreads) {
  const AttentionPlan plan = test::plan_of("strided(16), fixed(16, 4), dense", 3, 700);
  Problem<float> problem(plan, {1, 650, 3, 24, 20}, 1);
  round_inputs(problem);
  test::expect_same_for_any_threads([&] { return run(problem).all(); });
}

TEST_F(AttentionBf16Test, PoisonStaysWhereItIsNotSeen) {
  const Shape shape{1, 90, 1, 9, 7};
  for (const std::string& spec : test::typical_specs()) {
    SCOPED_TRACE(spec);
    const AttentionPlan plan({test::head_of(spec)}, 95);
    Problem<float> whole(plan, shape, 1);
    round_inputs(whole);
    const Result<float> clean = run(whole);
    for (Position at = 0; at < shape.length; at += 11) {
      Problem<float> keys(plan, shape, 1), queries(plan, shape, 1);
      for (auto* problem : {&keys, &queries}) round_inputs(*problem);
      const float poison = at % 2 == 0 ? std::numeric_limits<float>::quiet_NaN()
                                       : std::numeric_limits<float>::infinity();
      test::expect_isolated(plan, at, poison, clean, keys, queries, run);
    }
  }
}

}  // namespace

}  // namespace longstride::ops
