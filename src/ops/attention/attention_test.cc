#include "ops/attention/attention.h"

#include <gtest/gtest.h>

#include "ops/attention/attention_test_util.h"

namespace longstride::ops {

namespace {

using test::Problem;
using test::Result;
using test::Shape;

using AttentionTest = test::OneThread;

// Passes where the error is that of the plain formula, or the rounding of float32 as a whole.
void expect_close(const char* what, const std::vector<float>& got, const std::vector<float>& plain,
                  const std::vector<double>& truth) {
  const auto as_good = test::as_good_as<float>(plain, got, truth);
  if (as_good) return;
  EXPECT_LE(test::relative_l2(got, truth), 1e-6) << what << " " << as_good.message();
}

void expect_formula(const AttentionPlan& plan, const Shape& shape, std::uint64_t seed,
                    double sharpness = 1) {
  SCOPED_TRACE(test::name_of(plan));
  SCOPED_TRACE(testing::Message() << "B " << shape.batch << " N " << shape.length << " d "
                                  << shape.qk_width << ", " << shape.v_width);
  const Problem<double> exact(plan, shape, seed, sharpness);
  const Problem<float> single(plan, shape, seed, sharpness);
  const Result<double> truth = exact.formula(), walked = exact.run();
  const Result<float> plain = single.formula(), got = single.run();
  using Field64 = std::vector<double> Result<double>::*;
  using Field32 = std::vector<float> Result<float>::*;
  const std::tuple<const char*, Field64, Field32> fields[] = {
      {"out", &Result<double>::out, &Result<float>::out},
      {"lse", &Result<double>::lse, &Result<float>::lse},
      {"dq", &Result<double>::dq, &Result<float>::dq},
      {"dk", &Result<double>::dk, &Result<float>::dk},
      {"dv", &Result<double>::dv, &Result<float>::dv}};
  for (const auto& [name, wide, narrow] : fields) {
    expect_close(name, got.*narrow, plain.*narrow, truth.*wide);
    const test::Worst worst = test::worst(walked.*wide, truth.*wide);
    EXPECT_LE(worst.error, 1e-12) << name << " in float64 at " << worst.at;
  }
}

TEST_F(AttentionTest, MatchesTheFormulaForEachPart) {
  for (const std::string& spec : test::typical_specs())
    expect_formula(test::plan_of(spec, 2, 133), {2, 133, 2, 20, 12}, 1);
}

TEST_F(AttentionTest, MatchesTheFormulaForAnyShape) {
  std::uint64_t seed = 1;
  for (const std::int64_t length : {1, 2, 15, 16, 17, 63, 64, 65, 200})
    for (const std::int64_t width : {1, 3, 8, 17, 64, 71}) {
      const AttentionPlan plan = test::plan_of("strided(11), fixed(9, 2)", 2, length + seed % 3);
      expect_formula(plan, {1, length, 2, width, 72 - width}, ++seed);
    }
}

TEST_F(AttentionTest, MatchesTheFormulaForRandomUnions) {
  test::Dice dice(5);
  for (std::uint64_t seed = 0; seed < 300; ++seed) {
    const std::int64_t length = dice.in(1, 170), heads = dice.in(1, 3);
    std::vector<HeadPattern> kinds;
    for (std::int64_t h = 0; h < heads; ++h) kinds.push_back(test::random_head(dice));
    const AttentionPlan plan(kinds, length + dice.in(0, 40));
    expect_formula(plan, {dice.in(1, 2), length, heads, dice.in(1, 24), dice.in(1, 24)}, seed, 2);
  }
}

TEST_F(AttentionTest, MatchesTheFormulaOnEachInstructionSet) {
  test::for_each_target([] {
    test::Dice dice(6);
    for (std::uint64_t seed = 0; seed < 12; ++seed) {
      const AttentionPlan plan({test::random_head(dice), test::random_head(dice)}, 150);
      expect_formula(plan, {1, 140, 2, dice.in(1, 40), dice.in(1, 40)}, seed);
    }
  });
}

// Long lanes: many chunks, several groups of tiles.
TEST_F(AttentionTest, MatchesTheFormulaOverManyChunks) {
  for (const std::string spec :
       {"dense", "local(300)", "column(2)", "row(500)", "summary(10, 7, 0)", "previous_row(250)",
        "global(200)", "random(9, 1)"})
    expect_formula(test::plan_of(spec, 1, 700), {1, 700, 1, 16, 16}, 3, 3);
}

// Lanes that are cut into blocks for their gradients: one head, so the cuts are fine.
TEST_F(AttentionTest, MatchesTheFormulaOverBlocksOfPositions) {
  for (const std::string spec : {"dense", "local(150)", "local(60) + column(2)", "column(3)",
                                 "row(600)", "summary(20, 7, 0)", "previous_row(400)",
                                 "global(140)", "random(3, 1, 16)", "random(2, 1, 300)"}) {
    const AttentionPlan plan({test::head_of(spec)}, 1000);
    expect_formula(plan, {1, 970, 1, 12, 8}, 5);
    const Problem<float> problem(plan, {1, 970, 1, 12, 8}, 5);
    test::expect_same_for_any_threads([&] { return problem.run().all(); });
    set_threads(1);
  }
}

TEST_F(AttentionTest, GradientsAreThoseOfTheLoss) {
  for (const std::string& spec : test::typical_specs()) {
    SCOPED_TRACE(spec);
    const Shape shape{1, 33, 2, 2, 2};
    const AttentionPlan plan = test::plan_of(spec, shape.heads, shape.length);
    Problem<double> problem(plan, shape, 4);
    const Result<double> got = problem.run();
    const std::vector<double> dout = problem.dout.packed();
    const test::Strided<double> out(shape, shape.v_width);
    std::vector<double> lse = got.lse;
    for (const auto& [gradient, input] :
         {std::pair(&got.dq, &problem.q), {&got.dk, &problem.k}, {&got.dv, &problem.v}}) {
      const std::vector<double> at = input->packed();
      std::vector<double> x = at;
      const auto numeric = test::numeric_gradient(x, [&, to = input] {
        to->fill(x);
        problem.forward(out, lse);
        return test::dot(out.packed(), dout);
      });
      input->fill(at);
      EXPECT_LE(test::relative_l2(*gradient, numeric), 1e-8);
    }
  }
}

// What row i may not see is poisoned: the row keeps its bits. So does the gradient of a key when
// the queries that do not see it are.
template <class T>
void expect_isolated_rows(const AttentionPlan& plan, std::uint64_t seed) {
  const Shape shape{1, 90, 1, 9, 7};
  const T poisons[] = {std::numeric_limits<T>::quiet_NaN(), std::numeric_limits<T>::infinity()};
  const Result<T> clean = Problem<T>(plan, shape, seed).run();
  for (Position at = static_cast<Position>(seed % 4); at < shape.length; at += 7) {
    const T poison = poisons[at % 2];
    Problem<T> keys(plan, shape, seed), queries(plan, shape, seed);
    test::expect_isolated(plan, at, poison, clean, keys, queries,
                          [](const Problem<T>& problem) { return problem.run(); });
  }
}

TEST_F(AttentionTest, PoisonStaysWhereItIsNotSeen) {
  for (const std::string& spec : test::typical_specs()) {
    SCOPED_TRACE(spec);
    const AttentionPlan plan({test::head_of(spec)}, 95);
    expect_isolated_rows<float>(plan, 1);
    expect_isolated_rows<double>(plan, 2);
  }
  test::Dice dice(8);
  for (std::uint64_t seed = 0; seed < 40; ++seed) {
    const AttentionPlan plan({test::random_head(dice)}, 90);
    SCOPED_TRACE(test::name_of(plan));
    expect_isolated_rows<float>(plan, seed);
  }
}

TEST_F(AttentionTest, NaNOfASeenKeyIsNotHidden) {
  const AttentionPlan plan = test::plan_of("strided(8)", 1, 60);
  Problem<float> problem(plan, {1, 60, 1, 8, 8}, 1);
  problem.k.heads.at(0, 20, 0)[3] = std::numeric_limits<float>::quiet_NaN();
  const Result<float> got = problem.run();
  for (Position i = 0; i < 60; ++i)
    EXPECT_EQ(std::isnan(got.out[static_cast<std::size_t>(i * 8)]), plan.patterns[0].attends(i, 20))
        << i;
}

TEST_F(AttentionTest, RowsWithoutKeysAreZero) {
  for (const char* spec : {"summary(10, 3, 0)", "previous_row(10)"}) {
    const AttentionPlan plan = test::plan_of(spec, 1, 25);
    const Result<float> got = Problem<float>(plan, {1, 25, 1, 8, 8}, 1).run();
    for (std::size_t i = 0; i < 25; ++i) {
      EXPECT_EQ(got.lse[i] == -std::numeric_limits<float>::infinity(), i < 10) << i;
      for (std::size_t c = 0; i < 10 && c < 8; ++c) {
        EXPECT_EQ(got.out[i * 8 + c], 0);
        EXPECT_EQ(got.dq[i * 8 + c], 0);
      }
    }
    for (const float value : got.dk) EXPECT_TRUE(std::isfinite(value));
    for (std::size_t c = 20 * 8; c < 25 * 8; ++c) EXPECT_EQ(got.dv[c], 0);  // seen by nobody
  }
}

// A pass over the first positions only gives the bits of the longer pass: nothing of a row depends
// on what comes later, on the length of the plan or on where its tile ends.
TEST_F(AttentionTest, ShorterPassesHaveTheBitsOfLongerOnes) {
  for (const std::string& spec : test::typical_specs()) {
    SCOPED_TRACE(spec);
    const HeadPattern head = test::head_of(spec);
    const AttentionPlan longer({head}, 150);
    Problem<float> whole(longer, {1, 150, 1, 10, 6}, 3);
    const Result<float> want = whole.run();
    for (const std::int64_t length : {1, 40, 65, 129}) {
      const AttentionPlan shorter({head}, length);
      for (const AttentionPlan* plan : {&longer, &shorter}) {
        Problem<float> cut(*plan, {1, length, 1, 10, 6}, 0);
        for (auto [to, from] : {std::pair(&cut.q, &whole.q),
                                {&cut.k, &whole.k},
                                {&cut.v, &whole.v},
                                {&cut.dout, &whole.dout}})
          for (Position i = 0; i < length; ++i)
            std::copy_n(from->heads.at(0, i, 0), from->heads.width, to->heads.at(0, i, 0));
        const Result<float> got = cut.run();
        const auto first = [&](const std::vector<float>& x, std::size_t size) {
          return std::vector<float>(x.begin(), x.begin() + static_cast<std::ptrdiff_t>(size));
        };
        EXPECT_TRUE(test::same_bits(got.out, first(want.out, got.out.size()))) << length;
        EXPECT_TRUE(test::same_bits(got.lse, first(want.lse, got.lse.size()))) << length;
        EXPECT_TRUE(test::same_bits(got.dq, first(want.dq, got.dq.size()))) << length;
      }
    }
  }
}

TEST_F(AttentionTest, BitsDoNotDependOnThreads) {
  test::Dice dice(9);
  std::vector<HeadPattern> heads = parse_pattern("strided(16), fixed(16, 4), dense").heads(3);
  for (int n = 0; n < 3; ++n) heads.push_back(test::random_head(dice));
  const AttentionPlan plan(heads, 600);
  const Problem<float> problem(plan, {2, 577, 6, 24, 20}, 1);
  test::expect_same_for_any_threads([&] { return problem.run().all(); });
}

// Two keys with scores 0 and x, values 0 and 1: the output is e^x / (1 + e^x).
TEST_F(AttentionTest, WeightsAreAccurate) {
  const AttentionPlan plan = test::plan_of("dense", 1, 2);
  const std::int64_t count = 8000;
  Problem<float> problem(plan, {count, 2, 1, 1, 1}, 1);
  for (std::int64_t b = 0; b < count; ++b)
    for (Position i = 0; i < 2; ++i) {
      *problem.q.heads.at(b, i, 0) = 1;
      *problem.k.heads.at(b, i, 0) = static_cast<float>(i) * -0.01f * static_cast<float>(b);
      *problem.v.heads.at(b, i, 0) = static_cast<float>(i);
    }
  const std::vector<float> out = problem.run().out;
  for (std::int64_t b = 0; b < count; ++b) {
    const double weight = std::exp(static_cast<double>(*problem.k.heads.at(b, 1, 0)));
    const double got = static_cast<double>(out[static_cast<std::size_t>(2 * b + 1)]);
    EXPECT_NEAR(got / (weight / (1 + weight)), 1, 4 * std::numeric_limits<float>::epsilon()) << b;
  }
}

TEST_F(AttentionTest, LargeScoresStayFinite) {
  const AttentionPlan plan = test::plan_of("strided(8), dense", 2, 100);
  for (const double sharpness : {1e3, 1e4}) {
    const Result<float> got = Problem<float>(plan, {1, 100, 2, 16, 16}, 1, sharpness).run();
    for (const float value : got.all()) ASSERT_TRUE(std::isfinite(value));
    const Problem<double> exact(plan, {1, 100, 2, 16, 16}, 1, sharpness);
    EXPECT_LE(test::relative_l2(got.out, exact.formula().out), 1e-3);
  }
}

TEST_F(AttentionTest, EmptyIsFine) {
  const AttentionPlan plan = test::plan_of("dense", 1, 4);
  EXPECT_TRUE(Problem<float>(plan, {0, 4, 1, 8, 8}, 1).run().all().empty());
  EXPECT_TRUE(Problem<float>(plan, {1, 0, 1, 8, 8}, 1).run().all().empty());
}

TEST_F(AttentionTest, BadArgumentsAreNamed) {
  const AttentionPlan plan = test::plan_of("dense", 2, 10);
  const Shape shape{1, 8, 2, 4, 4};
  Problem<float> p(plan, shape, 1);
  test::Strided<float> out(shape, 4);
  std::vector<float> lse(16);
  const Attention<float> good = {&plan,     p.q.heads,       p.k.heads, p.v.heads,
                                 out.heads, test::view(lse), 1};
  const auto error_with = [&](auto change) {
    Attention<float> op = good;
    change(op);
    return test::error_of([&] { attention(op); });
  };
  EXPECT_EQ(error_with([](auto&) {}), "no error");
  EXPECT_EQ(error_with([](auto& op) { op.plan = nullptr; }), "attention: no plan");
  EXPECT_EQ(error_with([](auto& op) { op.k.width = 5; }),
            "attention: k is [1, 8, 2, 5], want [1, 8, 2, 4]");
  EXPECT_EQ(error_with([](auto& op) { op.v.data = nullptr; }), "attention: v has no data");
  EXPECT_EQ(error_with([](auto& op) { op.q.row_stride = 7; }),
            "attention: q has row stride 7, want at least 8");
  EXPECT_EQ(error_with([](auto& op) { op.lse.size = 9; }), "attention: lse has 9 entries, want 16");
  EXPECT_EQ(error_with([](auto& op) { op.scale = std::numeric_limits<float>::infinity(); }),
            "attention: scale is inf, want a number");
  const AttentionPlan other = test::plan_of("dense", 3, 10), small = test::plan_of("dense", 2, 7);
  EXPECT_EQ(error_with([&](auto& op) { op.plan = &other; }),
            "attention: the plan has 3 heads, q has 2");
  EXPECT_EQ(error_with([&](auto& op) { op.plan = &small; }),
            "attention: the plan is for length 7, q has 8");
}

}  // namespace

}  // namespace longstride::ops
