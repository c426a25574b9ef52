// The tile kernels on the emulated unit, and on the processor's where it has one: against the
// formula in float64 on the same bf16 values, with what a plain loop in bf16 loses as the bound.
#include "ops/attention/attention_amx.h"

#include <gtest/gtest.h>

#include "ops/attention/attention_test_util.h"

namespace longstride::ops {

namespace {

using cpu::TileUnit;
using test::Problem;
using test::Result;
using test::Shape;

using AttentionTilesTest = test::OneThread;

std::vector<TileUnit> units() {
  std::vector<TileUnit> list = {TileUnit::emulated};
  if (cpu::amx_available()) list.push_back(TileUnit::amx);
  return list;
}

const char* name_of(TileUnit unit) { return unit == TileUnit::amx ? "AMX" : "emulated"; }

float rounded(float x) { return static_cast<float>(bf16(x)); }

constexpr std::uint16_t kNaN = 0x7fc1, kInfinity = 0x7f80;

bf16 of_bits(std::uint16_t bits) {
  bf16 x;
  x.bits = bits;
  return x;
}

// [B, N, H, width] with NaN between the rows.
struct Bf16Heads {
  Bf16Heads(const Shape& shape, std::int64_t width)
      : stride(shape.heads * width + 3),
        data(static_cast<std::size_t>(shape.batch * shape.length * stride), of_bits(kNaN)),
        heads{data.data(), shape.batch, shape.length, shape.heads, width, stride} {}
  Bf16Heads(const Bf16Heads&) = delete;

  void fill(const std::vector<float>& values) {
    std::size_t n = 0;
    each_row([&](bf16* row) {
      for (std::int64_t c = 0; c < heads.width; ++c) row[c] = bf16(values[n++]);
    });
  }
  std::vector<float> packed() const {
    std::vector<float> values;
    each_row([&](const bf16* row) {
      for (std::int64_t c = 0; c < heads.width; ++c) values.push_back(static_cast<float>(row[c]));
    });
    for (std::int64_t r = 0; r < heads.batch * heads.length; ++r)
      for (std::int64_t c = heads.heads * heads.width; c < stride; ++c)
        EXPECT_EQ(data[static_cast<std::size_t>(r * stride + c)].bits, kNaN) << "gap written";
    return values;
  }
  template <class Visit>
  void each_row(Visit visit) const {
    for (std::int64_t b = 0; b < heads.batch; ++b)
      for (Position i = 0; i < heads.length; ++i)
        for (std::int64_t h = 0; h < heads.heads; ++h) visit(heads.at(b, i, h));
  }

  std::int64_t stride;
  std::vector<bf16> data;
  Heads<bf16> heads;
};

struct TileProblem {
  TileProblem(const AttentionPlan& plan_, const Shape& shape_, std::uint64_t seed,
              double sharpness = 1)
      : plan(plan_),
        shape(shape_),
        exact(plan, shape, seed, sharpness),
        q(shape, shape.qk_width),
        k(shape, shape.qk_width),
        v(shape, shape.v_width),
        dout(shape, shape.v_width),
        scale(static_cast<float>(exact.scale)) {
    for (auto [narrow, wide] :
         {std::pair(&q, &exact.q), {&k, &exact.k}, {&v, &exact.v}, {&dout, &exact.dout}}) {
      const std::vector<double> values = wide->packed();
      narrow->fill({values.begin(), values.end()});
      wide->fill(narrow->packed());
    }
  }

  Result<float> run(TileUnit unit) const {
    Bf16Heads out(shape, shape.v_width);
    test::Strided<float> dq(shape, shape.qk_width), dk(shape, shape.qk_width),
        dv(shape, shape.v_width);
    auto lse = test::poisoned<float>(shape.batch * shape.heads * shape.length);
    cpu::attention_on_tiles({&plan, q.heads, k.heads, v.heads, out.heads, test::view(lse), scale},
                            unit);
    const auto& kept = lse;
    cpu::attention_backward_on_tiles({&plan, q.heads, k.heads, v.heads, out.heads, dout.heads,
                                      test::view(kept), dq.heads, dk.heads, dv.heads, scale},
                                     unit);
    return {out.packed(), lse, dq.packed(), dk.packed(), dv.packed()};
  }

  // Scores and sums in float; P, dS and out rounded to bf16.
  Result<float> plain() const {
    const std::int64_t rows = shape.batch * shape.heads * shape.length;
    const auto size = [&](std::int64_t width) { return static_cast<std::size_t>(rows * width); };
    Result<float> r;
    r.out.resize(size(shape.v_width));
    r.lse.resize(size(1));
    r.dq.resize(size(shape.qk_width));
    r.dk.resize(size(shape.qk_width));
    r.dv.resize(size(shape.v_width));
    for (std::int64_t b = 0; b < shape.batch; ++b)
      for (std::int64_t h = 0; h < shape.heads; ++h)
        for (Position i = 0; i < shape.length; ++i) plain_row(b, h, i, r);
    return r;
  }

  void plain_row(std::int64_t b, std::int64_t h, Position i, Result<float>& r) const {
    const auto row = [&](std::vector<float>& x, Position at, std::int64_t width) {
      return x.data() + ((b * shape.length + at) * shape.heads + h) * width;
    };
    const auto dot = [](const bf16* x, const bf16* y, std::int64_t width) {
      float sum = 0;
      for (std::int64_t c = 0; c < width; ++c)
        sum += static_cast<float>(x[c]) * static_cast<float>(y[c]);
      return sum;
    };
    float& lse = r.lse[static_cast<std::size_t>((b * shape.heads + h) * shape.length + i)];
    float* const out = row(r.out, i, shape.v_width);
    lse = -std::numeric_limits<float>::infinity();
    const auto keys = ref::attended(plan, h, i);
    if (keys.empty()) return;
    std::vector<float> s;
    for (const Position j : keys)
      s.push_back(scale * dot(q.heads.at(b, i, h), k.heads.at(b, j, h), shape.qk_width));
    const float top = *std::max_element(s.begin(), s.end());
    float sum = 0;
    for (const float x : s) sum += std::exp(x - top);
    lse = top + std::log(sum);
    float mean = 0;
    for (std::int64_t c = 0; c < shape.v_width; ++c) {
      for (std::size_t n = 0; n < keys.size(); ++n)
        out[c] += rounded(std::exp(s[n] - top)) * static_cast<float>(v.heads.at(b, keys[n], h)[c]);
      out[c] = rounded(out[c] / sum);
      mean += out[c] * static_cast<float>(dout.heads.at(b, i, h)[c]);
    }
    for (std::size_t n = 0; n < keys.size(); ++n) {
      const Position j = keys[n];
      const float p = std::exp(s[n] - lse);
      const float dp = dot(dout.heads.at(b, i, h), v.heads.at(b, j, h), shape.v_width);
      const float ds = rounded(p * (dp - mean));
      for (std::int64_t c = 0; c < shape.v_width; ++c)
        row(r.dv, j, shape.v_width)[c] +=
            rounded(p) * static_cast<float>(dout.heads.at(b, i, h)[c]);
      for (std::int64_t c = 0; c < shape.qk_width; ++c) {
        row(r.dq, i, shape.qk_width)[c] += scale * ds * static_cast<float>(k.heads.at(b, j, h)[c]);
        row(r.dk, j, shape.qk_width)[c] += scale * ds * static_cast<float>(q.heads.at(b, i, h)[c]);
      }
    }
  }

  const AttentionPlan& plan;
  Shape shape;
  Problem<double> exact;  // the same values
  Bf16Heads q, k, v, dout;
  float scale;
};

using Field64 = std::vector<double> Result<double>::*;
using Field32 = std::vector<float> Result<float>::*;
const std::tuple<const char*, Field64, Field32> kFields[] = {
    {"out", &Result<double>::out, &Result<float>::out},
    {"lse", &Result<double>::lse, &Result<float>::lse},
    {"dq", &Result<double>::dq, &Result<float>::dq},
    {"dk", &Result<double>::dk, &Result<float>::dk},
    {"dv", &Result<double>::dv, &Result<float>::dv}};

void expect_formula(const AttentionPlan& plan, const Shape& shape, std::uint64_t seed,
                    double sharpness = 1) {
  SCOPED_TRACE(test::name_of(plan));
  SCOPED_TRACE(testing::Message() << "B " << shape.batch << " N " << shape.length << " d "
                                  << shape.qk_width << ", " << shape.v_width << " seed " << seed);
  const TileProblem problem(plan, shape, seed, sharpness);
  const Result<double> truth = problem.exact.formula();
  const Result<float> plain = problem.plain();
  // Where dP - D is exactly 0 (a row of one key) the plain loop finds that, other orders of its sum
  // of terms of about 1 do not.
  const double slack = static_cast<double>(4 * std::numeric_limits<float>::epsilon()) *
                       static_cast<double>(shape.v_width);
  for (const TileUnit unit : units()) {
    const Result<float> got = problem.run(unit);
    for (const auto& [name, wide, narrow] : kFields) {
      const auto as_good = test::as_good_as<float>(plain.*narrow, got.*narrow, truth.*wide);
      const double error = test::worst(got.*narrow, truth.*wide).error;
      EXPECT_TRUE(as_good || error <= slack) << name << " " << name_of(unit) << as_good.message();
    }
  }
}

TEST_F(AttentionTilesTest, MatchTheFormulaForEachPart) {
  for (const std::string& spec : test::typical_specs())
    expect_formula(test::plan_of(spec, 2, 133), {2, 133, 2, 20, 12}, 1);
}

TEST_F(AttentionTilesTest, MatchTheFormulaForAnyShape) {
  std::uint64_t seed = 1;
  for (const std::int64_t length : {1, 2, 15, 16, 17, 63, 64, 65, 200})
    for (const std::int64_t width : {1, 3, 8, 17, 33, 64}) {
      const AttentionPlan plan = test::plan_of("strided(11), fixed(9, 2)", 2, length + seed % 3);
      expect_formula(plan, {1, length, 2, width, 72 - width}, ++seed);
    }
  expect_formula(test::plan_of("local(40) + column(20)", 1, 90), {1, 90, 1, 256, 128}, 1);
  expect_formula(test::plan_of("local(40) + column(20)", 1, 90), {1, 90, 1, 96, 250}, 2);
}

TEST_F(AttentionTilesTest, MatchTheFormulaForRandomUnions) {
  test::Dice dice(5);
  for (std::uint64_t seed = 0; seed < 150; ++seed) {
    const std::int64_t length = dice.in(1, 170), heads = dice.in(1, 3);
    std::vector<HeadPattern> kinds;
    for (std::int64_t h = 0; h < heads; ++h) kinds.push_back(test::random_head(dice));
    const AttentionPlan plan(kinds, length + dice.in(0, 40));
    expect_formula(plan, {dice.in(1, 2), length, heads, dice.in(1, 40), dice.in(1, 40)}, seed, 2);
  }
}

// Lanes of several segments, several chunks, groups and blocks.
TEST_F(AttentionTilesTest, MatchTheFormulaOverManySegments) {
  for (const std::string spec :
       {"dense", "local(300)", "column(2)", "row(500)", "row(24)", "summary(10, 7, 0)",
        "previous_row(250)", "previous_row(24)", "global(70)", "global(20)",
        "local(90) + global(64)", "random(9, 1)", "local(30) + random(3, 1)", "fixed(30, 4)"})
    expect_formula(test::plan_of(spec, 1, 700), {1, 700, 1, 16, 16}, 3, 3);
}

// What row i may not see is poisoned: the row keeps its bits. So does the gradient of a key when
// the queries that do not see it are.
void expect_isolated_rows(const AttentionPlan& plan, std::uint64_t seed, TileUnit unit) {
  const Shape shape{1, 90, 1, 9, 7};
  const Result<float> clean = TileProblem(plan, shape, seed).run(unit);
  for (Position at = static_cast<Position>(seed % 4); at < shape.length; at += 13) {
    const bf16 poison = of_bits(at % 2 == 0 ? kNaN : kInfinity);
    TileProblem keys(plan, shape, seed), queries(plan, shape, seed);
    test::expect_isolated(plan, at, poison, clean, keys, queries,
                          [&](const TileProblem& problem) { return problem.run(unit); });
  }
}

TEST_F(AttentionTilesTest, PoisonStaysWhereItIsNotSeen) {
  for (const TileUnit unit : units()) {
    SCOPED_TRACE(name_of(unit));
    for (const std::string& spec : test::typical_specs()) {
      SCOPED_TRACE(spec);
      expect_isolated_rows(AttentionPlan({test::head_of(spec)}, 95), 1, unit);
    }
    test::Dice dice(8);
    for (std::uint64_t seed = 0; seed < 30; ++seed) {
      const AttentionPlan plan({test::random_head(dice)}, 90);
      SCOPED_TRACE(test::name_of(plan));
      expect_isolated_rows(plan, seed, unit);
    }
  }
}

// One element of one row is not finite: exactly the rows whose formula says so are not either.
TEST_F(AttentionTilesTest, PoisonThatIsSeenIsNotHidden) {
  for (const char* spec : {"strided(8)", "fixed(16, 4)", "dense", "random(2, 7, 8)"})
    for (const TileUnit unit : units())
      for (int which = 0; which < 4; ++which) {
        SCOPED_TRACE(testing::Message() << spec << " " << name_of(unit) << " input " << which);
        const AttentionPlan plan = test::plan_of(spec, 1, 90);
        TileProblem problem(plan, {1, 90, 1, 8, 8}, 1);
        Bf16Heads* const inputs[] = {&problem.q, &problem.k, &problem.v, &problem.dout};
        inputs[which]->heads.at(0, 20, 0)[3] = of_bits(kNaN);
        const Result<float> got = problem.run(unit), want = problem.plain();
        for (const auto& [name, wide, narrow] : kFields)
          for (std::size_t n = 0; n < (want.*narrow).size(); ++n)
            ASSERT_EQ(std::isnan((got.*narrow)[n]), std::isnan((want.*narrow)[n]))
                << name << " at " << n;
      }
}

TEST_F(AttentionTilesTest, RowsWithoutKeysAreZero) {
  for (const TileUnit unit : units())
    for (const char* spec : {"summary(10, 3, 0)", "previous_row(10)"}) {
      const AttentionPlan plan = test::plan_of(spec, 1, 25);
      const Result<float> got = TileProblem(plan, {1, 25, 1, 8, 8}, 1).run(unit);
      for (std::size_t i = 0; i < 25; ++i) {
        EXPECT_EQ(got.lse[i] == -std::numeric_limits<float>::infinity(), i < 10) << i;
        for (std::size_t c = 0; i < 10 && c < 8; ++c) {
          EXPECT_EQ(got.out[i * 8 + c], 0);
          EXPECT_EQ(got.dq[i * 8 + c], 0);
        }
      }
      for (std::size_t c = 20 * 8; c < 25 * 8; ++c) EXPECT_EQ(got.dv[c], 0);  // seen by nobody
    }
}

// A pass over the first positions gives the bits of the longer pass.
TEST_F(AttentionTilesTest, ShorterPassesHaveTheBitsOfLongerOnes) {
  for (const TileUnit unit : units())
    for (const std::string& spec : test::typical_specs()) {
      SCOPED_TRACE(spec);
      const AttentionPlan plan({test::head_of(spec)}, 150);
      const TileProblem whole(plan, {1, 150, 1, 10, 6}, 3);
      const Result<float> want = whole.run(unit);
      for (const std::int64_t length : {1, 40, 65, 129}) {
        TileProblem cut(plan, {1, length, 1, 10, 6}, 0);
        for (auto [to, from] : {std::pair(&cut.q, &whole.q),
                                {&cut.k, &whole.k},
                                {&cut.v, &whole.v},
                                {&cut.dout, &whole.dout}})
          for (Position i = 0; i < length; ++i)
            std::copy_n(from->heads.at(0, i, 0), from->heads.width, to->heads.at(0, i, 0));
        const Result<float> got = cut.run(unit);
        const auto first = [&](const std::vector<float>& x, std::size_t size) {
          return std::vector<float>(x.begin(), x.begin() + static_cast<std::ptrdiff_t>(size));
        };
        EXPECT_TRUE(test::same_bits(got.out, first(want.out, got.out.size()))) << length;
        EXPECT_TRUE(test::same_bits(got.lse, first(want.lse, got.lse.size()))) << length;
      }
    }
}

TEST_F(AttentionTilesTest, BitsDoNotDependOnThreads) {
  test::Dice dice(9);
  std::vector<HeadPattern> heads = parse_pattern("strided(16), fixed(16, 4), dense").heads(3);
  for (int n = 0; n < 3; ++n) heads.push_back(test::random_head(dice));
  const AttentionPlan plan(heads, 600);
  const TileProblem problem(plan, {2, 577, 6, 24, 20}, 1);
  for (const TileUnit unit : units())
    test::expect_same_for_any_threads([&] { return problem.run(unit).all(); });
}

// Scores far apart: sums are rescaled, weights vanish.
TEST_F(AttentionTilesTest, LargeScoresStayFinite) {
  const AttentionPlan plan = test::plan_of("strided(8), dense", 2, 150);
  for (const double sharpness : {10., 1e3, 1e4}) {
    const TileProblem problem(plan, {1, 150, 2, 16, 16}, 1, sharpness);
    const Result<double> truth = problem.exact.formula();
    for (const TileUnit unit : units()) {
      const Result<float> got = problem.run(unit);
      for (const float value : got.all()) ASSERT_TRUE(std::isfinite(value));
      EXPECT_LE(test::relative_l2(got.out, truth.out), 4e-3) << name_of(unit);
      EXPECT_LE(test::relative_l2(got.lse, truth.lse), 1e-6) << name_of(unit);
    }
  }
}

// The two units differ in the order of no sum: only in fused multiply-adds of the softmax.
TEST_F(AttentionTilesTest, ProcessorGivesWhatTheEmulationGives) {
  if (!cpu::amx_available()) GTEST_SKIP() << "no AMX here";
  const AttentionPlan plan = test::plan_of("strided(20), fixed(20, 4), dense", 3, 500);
  const TileProblem problem(plan, {1, 500, 3, 64, 64}, 1);
  const Result<float> amx = problem.run(TileUnit::amx), other = problem.run(TileUnit::emulated);
  for (const auto& [name, wide, narrow] : kFields)
    EXPECT_LE(test::relative_l2(amx.*narrow, other.*narrow), 5e-4) << name;
}

TEST_F(AttentionTilesTest, EmptyIsFine) {
  const AttentionPlan plan = test::plan_of("dense", 1, 4);
  for (const TileUnit unit : units()) {
    EXPECT_TRUE(TileProblem(plan, {0, 4, 1, 8, 8}, 1).run(unit).all().empty());
    EXPECT_TRUE(TileProblem(plan, {1, 0, 1, 8, 8}, 1).run(unit).all().empty());
  }
}

}  // namespace

}  // namespace longstride::ops
