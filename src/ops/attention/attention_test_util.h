// A whole attention problem in memory: strided heads, poison wherever nobody may read.
#pragma once

#include <cmath>
#include <string_view>
#include <vector>

#include "as_good_as.h"
#include "ops/attention/attention_ref.h"
#include "ops/attention/decode.h"
#include "ops/test_util.h"
#include "pattern/random_specs.h"

namespace longstride::test {

// Small problems run on one thread: starting a team for each takes longer than they do.
class OneThread : public testing::Test {
 protected:
  void SetUp() override { set_threads(1); }
  void TearDown() override { set_threads(0); }
};

struct Shape {
  std::int64_t batch = 1, length = 1, heads = 1, qk_width = 8, v_width = 8;
};

// [B, N, H, width] with NaN between the rows and in `beyond` more rows behind the last.
template <class T>
struct Strided {
  static constexpr std::int64_t kGap = 3, kBeyond = 5;

  Strided() = default;
  Strided(const Shape& shape, std::int64_t width)
      : data(poisoned<T>((shape.batch * shape.length + kBeyond) * (shape.heads * width + kGap))),
        heads{data.data(), shape.batch, shape.length,
              shape.heads, width,       shape.heads * width + kGap} {}

  // The elements, packed; fails where the gaps were written.
  std::vector<T> packed() const {
    std::vector<T> values;
    for (std::int64_t b = 0; b < heads.batch; ++b)
      for (std::int64_t i = 0; i < heads.length; ++i)
        for (std::int64_t h = 0; h < heads.heads; ++h)
          values.insert(values.end(), heads.at(b, i, h), heads.at(b, i, h) + heads.width);
    std::size_t poison = data.size() - values.size();
    for (std::int64_t r = 0; r < heads.batch * heads.length + kBeyond; ++r) {
      const bool inside = r < heads.batch * heads.length;
      for (std::int64_t c = inside ? heads.heads * heads.width : 0; c < heads.row_stride; ++c)
        poison -= std::isnan(data[static_cast<std::size_t>(r * heads.row_stride + c)]);
    }
    EXPECT_EQ(poison, 0u) << "memory beside the rows was written";
    return values;
  }

  template <class From>
  void fill(const std::vector<From>& values) {
    std::size_t n = 0;
    for (std::int64_t b = 0; b < heads.batch; ++b)
      for (std::int64_t i = 0; i < heads.length; ++i)
        for (std::int64_t h = 0; h < heads.heads; ++h)
          for (std::int64_t c = 0; c < heads.width; ++c)
            heads.at(b, i, h)[c] = static_cast<T>(values[n++]);
  }

  std::vector<T> data;
  Heads<T> heads;
};

template <class T>
struct Result {
  std::vector<T> out, lse, dq, dk, dv;

  std::vector<T> all() const {
    std::vector<T> values;
    for (const auto* part : {&out, &lse, &dq, &dk, &dv})
      values.insert(values.end(), part->begin(), part->end());
    return values;
  }
};

template <class T>
struct Problem {
  Problem(const AttentionPlan& plan_, const Shape& shape_, std::uint64_t seed, double sharpness = 1)
      : plan(&plan_),
        shape(shape_),
        q(shape, shape.qk_width),
        k(shape, shape.qk_width),
        v(shape, shape.v_width),
        dout(shape, shape.v_width),
        scale(static_cast<T>(
            static_cast<float>(1 / std::sqrt(static_cast<double>(shape.qk_width))))) {
    std::uint64_t stream = seed * 10;
    for (auto* x : {&q, &k, &v, &dout})
      x->fill(
          random_normal<float>(x->heads.batch * x->heads.length * x->heads.heads * x->heads.width,
                               stream++, x == &q ? sharpness : 1));
  }
  Problem(const Problem&) = delete;

  // forward, then backward; kernels or the formula.
  template <bool kFormula = false>
  Result<T> run() const {
    Strided<T> out(shape, shape.v_width), dq(shape, shape.qk_width), dk(shape, shape.qk_width),
        dv(shape, shape.v_width);
    auto lse = poisoned<T>(shape.batch * shape.heads * shape.length);
    forward<kFormula>(out, lse);
    const auto& kept = lse;
    const ops::AttentionBackward<T> op = {plan,      q.heads,    k.heads,    v.heads,
                                          out.heads, dout.heads, view(kept), dq.heads,
                                          dk.heads,  dv.heads,   scale};
    kFormula ? ops::ref::attention_backward(op) : ops::attention_backward(op);
    return {out.packed(), lse, dq.packed(), dk.packed(), dv.packed()};
  }
  Result<T> formula() const { return run<true>(); }

  template <bool kFormula = false>
  void forward(const Strided<T>& out, std::vector<T>& lse) const {
    const ops::Attention<T> op = {plan, q.heads, k.heads, v.heads, out.heads, view(lse), scale};
    kFormula ? ops::ref::attention(op) : ops::attention(op);
  }

  const AttentionPlan* plan;
  Shape shape;
  Strided<T> q, k, v, dout;
  T scale;
};

inline AttentionPlan plan_of(std::string_view spec, std::int64_t heads, std::int64_t length) {
  return {parse_pattern(spec).heads(heads), length};
}

// The first head that a layer of this pattern has.
inline HeadPattern head_of(std::string_view spec) {
  const LayerPattern layer = parse_pattern(spec);
  return layer.heads(layer.weights())[0];
}

inline std::string name_of(const AttentionPlan& plan) {
  std::string name;
  for (const HeadPattern& head : plan.patterns)
    name += (name.empty() ? "" : ", ") + to_string(head);
  return name + " of " + std::to_string(plan.length);
}

// One spec a kind of part, and the unions that the models use.
inline const std::vector<std::string>& typical_specs() {
  static const std::vector<std::string> specs = {
      "dense",
      "local(1)",
      "local(20)",
      "column(7)",
      "column(16)",
      "row(24)",
      "summary(12, 5, 1)",
      "previous_row(16)",
      "global(9)",
      "random(2, 7, 8)",
      "strided(12)",
      "fixed(16, 4)",
      "local(10) + global(5)",
      "local(13) + random(2, 3, 8)",
      "row(16) + previous_row(16) + column(16)",
      "local(9), column(9)",
  };
  return specs;
}

// Of one batch entry and head. Poisons, in `keys`, what row `at` may not see: the row keeps the
// bits that it has in `clean`. In `queries`, what does not see key `at`: its gradients keep theirs.
// run(problem) gives its results.
template <class Inputs, class Poison, class T, class Run>
void expect_isolated(const AttentionPlan& plan, Position at, Poison poison, const Result<T>& clean,
                     Inputs& keys, Inputs& queries, const Run& run) {
  const auto& shape = keys.q.heads;
  for (Position j = 0; j < shape.length; ++j) {
    if (!plan.patterns[0].attends(at, j))
      for (auto* x : {&keys.k, &keys.v}) std::fill_n(x->heads.at(0, j, 0), x->heads.width, poison);
    if (!plan.patterns[0].attends(j, at))
      for (auto* x : {&queries.q, &queries.dout})
        std::fill_n(x->heads.at(0, j, 0), x->heads.width, poison);
  }
  const Result<T> row = run(keys), key = run(queries);
  const auto same = [&](const std::vector<T>& a, const std::vector<T>& b, std::int64_t width) {
    const auto cut = [&](const std::vector<T>& x) {
      return std::vector<T>(x.begin() + at * width, x.begin() + (at + 1) * width);
    };
    return same_bits(cut(a), cut(b));
  };
  const std::int64_t qk_width = keys.q.heads.width, v_width = keys.v.heads.width;
  EXPECT_TRUE(same(row.out, clean.out, v_width)) << "out of row " << at;
  EXPECT_TRUE(same(row.lse, clean.lse, 1)) << "lse of row " << at;
  EXPECT_TRUE(same(row.dq, clean.dq, qk_width)) << "dq of row " << at;
  EXPECT_TRUE(same(key.dk, clean.dk, qk_width)) << "dk of key " << at;
  EXPECT_TRUE(same(key.dv, clean.dv, v_width)) << "dv of key " << at;
}

}  // namespace longstride::test
