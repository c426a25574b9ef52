#include "ops/embedding/embedding.h"

#include <gtest/gtest.h>

#include "as_good_as.h"
#include "ops/embedding/embedding_ref.h"
#include "ops/test_util.h"

namespace longstride::ops {

namespace {

using test::as_good_as, test::dot, test::error_of, test::numeric_gradient, test::poisoned;
using test::random_bytes, test::random_normal, test::relative_l2, test::same_bits, test::view;

struct Case {
  std::int64_t batch, length, d;
  std::vector<std::int64_t> extents;
  friend void PrintTo(const Case& c, std::ostream* out) {
    *out << c.batch << "x" << c.length << "x" << c.d << " on " << c.extents.size() << " axes";
  }
};

template <class Real>
struct Problem {
  explicit Problem(const Case& shape) : c(shape) {
    for (const std::int64_t extent : c.extents) {
      axes.push_back(random_normal<Real>(extent * c.d, 10 + axes.size()));
      daxes.push_back(random_normal<Real>(extent * c.d, 20 + axes.size()));
    }
  }

  Embedding<Real> forward() {
    return {.tokens = tokens.data(),
            .batch = c.batch,
            .length = c.length,
            .bytes = matrix<const Real>(bytes.data(), 256, c.d),
            .axes = tables<const Real>(axes),
            .start = view(start),
            .y = matrix(y.data(), c.batch * c.length, c.d)};
  }
  EmbeddingBackward<Real> backward() {
    return {.tokens = tokens.data(),
            .batch = c.batch,
            .length = c.length,
            .dy = matrix<const Real>(dy.data(), c.batch * c.length, c.d),
            .dbytes = matrix(dbytes.data(), 256, c.d),
            .daxes = tables<Real>(daxes),
            .dstart = view(dstart)};
  }
  template <class T>
  std::vector<Matrix<T>> tables(std::vector<std::vector<Real>>& values) const {
    std::vector<Matrix<T>> views;
    for (std::size_t a = 0; a < values.size(); ++a)
      views.push_back(matrix<T>(values[a].data(), c.extents[a], c.d));
    return views;
  }

  Case c;
  std::vector<std::uint8_t> tokens = random_bytes(c.batch * c.length, 1);
  std::vector<Real> bytes = random_normal<Real>(256 * c.d, 2), start = random_normal<Real>(c.d, 3),
                    dy = random_normal<Real>(c.batch * c.length * c.d, 4),
                    y = poisoned<Real>(c.batch * c.length * c.d),
                    dbytes = random_normal<Real>(256 * c.d, 5),
                    dstart = random_normal<Real>(c.d, 6);
  std::vector<std::vector<Real>> axes, daxes;
};

// rows x columns x channels, odd extents, spare positions, a single axis, no axis at all.
const Case kCases[] = {{2, 7, 3, {2, 3}},   {3, 24, 5, {2, 4, 3}}, {1, 1, 4, {1}},
                       {2, 50, 37, {7, 8}}, {1, 9, 65, {8}},       {4, 2, 6, {}}};

class EmbeddingTest : public testing::TestWithParam<Case> {};

// The contract, written out once more with explicit digits instead of a running quotient.
TEST_P(EmbeddingTest, ForwardIsTheSumOfItsRows) {
  Problem<double> p(GetParam());
  embedding(p.forward());
  const Case& c = p.c;
  for (std::int64_t b = 0; b < c.batch; ++b)
    for (std::int64_t i = 0; i < c.length; ++i)
      for (std::int64_t k = 0; k < c.d; ++k) {
        const auto at = [&](const std::vector<double>& table, std::int64_t row) {
          return table[static_cast<std::size_t>(row * c.d + k)];
        };
        double want = at(p.start, 0);
        if (i > 0) {
          want = at(p.bytes, p.tokens[static_cast<std::size_t>(b * c.length + i - 1)]);
          for (std::size_t a = 0; a < c.extents.size(); ++a) {
            std::int64_t below = 1;
            for (std::size_t faster = a + 1; faster < c.extents.size(); ++faster)
              below *= c.extents[faster];
            want += at(p.axes[a], (i - 1) / below % c.extents[a]);
          }
        }
        EXPECT_NEAR(at(p.y, b * c.length + i), want, 1e-14) << b << " " << i << " " << k;
      }
}

TEST_P(EmbeddingTest, MatchesFloat64) {
  Problem<double> truth(GetParam());
  Problem<float> plain(GetParam()), got(GetParam());
  embedding(truth.forward());
  ref::embedding(plain.forward());
  embedding(got.forward());
  EXPECT_TRUE(as_good_as<float>(plain.y, got.y, truth.y));
  embedding_backward(truth.backward());
  ref::embedding_backward(plain.backward());
  embedding_backward(got.backward());
  EXPECT_TRUE(as_good_as<float>(plain.dbytes, got.dbytes, truth.dbytes));
  EXPECT_TRUE(as_good_as<float>(plain.dstart, got.dstart, truth.dstart));
  for (std::size_t a = 0; a < truth.daxes.size(); ++a)
    EXPECT_TRUE(as_good_as<float>(plain.daxes[a], got.daxes[a], truth.daxes[a]));
}

TEST_P(EmbeddingTest, GradientIsTheDerivative) {
  Problem<double> p(GetParam());
  const auto loss = [&] {
    embedding(p.forward());
    return dot(p.y, p.dy);
  };
  const auto dbytes = numeric_gradient(p.bytes, loss), dstart = numeric_gradient(p.start, loss);
  std::vector<std::vector<double>> daxes;
  for (auto& axis : p.axes) daxes.push_back(numeric_gradient(axis, loss));

  p.dbytes.assign(p.dbytes.size(), 0);
  p.dstart.assign(p.dstart.size(), 0);
  for (auto& daxis : p.daxes) daxis.assign(daxis.size(), 0);
  embedding_backward(p.backward());
  EXPECT_LE(relative_l2(p.dbytes, dbytes), 1e-8);
  EXPECT_LE(relative_l2(p.dstart, dstart), 1e-8);
  for (std::size_t a = 0; a < daxes.size(); ++a) EXPECT_LE(relative_l2(p.daxes[a], daxes[a]), 1e-8);
}

TEST_P(EmbeddingTest, SameBitsForAnyThreads) {
  test::expect_same_for_any_threads([] {
    Problem<float> p(GetParam());
    embedding(p.forward());
    embedding_backward(p.backward());
    std::vector<float> all = p.y;
    for (const auto& part : {p.dbytes, p.dstart}) all.insert(all.end(), part.begin(), part.end());
    for (const auto& part : p.daxes) all.insert(all.end(), part.begin(), part.end());
    return all;
  });
}

// Decoding position by position, and in runs, gives the rows of the whole.
TEST_P(EmbeddingTest, ContinuesFromAnyPosition) {
  Problem<float> whole(GetParam()), pieces(GetParam());
  embedding(whole.forward());
  const Case& c = whole.c;
  for (std::int64_t b = 0; b < c.batch; ++b)
    for (std::int64_t first = 0; first < c.length;) {
      auto op = pieces.forward();
      const std::int64_t row = b * c.length + first;
      op.batch = 1;
      op.first = first;
      op.length = std::min(1 + first % 3, c.length - first);
      op.tokens = op.length > 1 ? pieces.tokens.data() + row : nullptr;
      op.previous = first > 0 ? pieces.tokens.data() + row - 1 : nullptr;
      op.y = matrix(pieces.y.data() + row * c.d, op.length, c.d);
      embedding(op);
      first += op.length;
    }
  EXPECT_TRUE(same_bits(pieces.y, whole.y));
}

INSTANTIATE_TEST_SUITE_P(Shapes, EmbeddingTest, testing::ValuesIn(kCases));

// One position of several sequences at once, as the sampler does.
TEST(Embedding, DecodesABatch) {
  const Case c{3, 6, 5, {2, 3}};
  Problem<float> whole(c), step(c);
  embedding(whole.forward());
  const std::vector<std::uint8_t> previous = {whole.tokens[3], whole.tokens[9], whole.tokens[15]};
  auto op = step.forward();
  op.tokens = nullptr;
  op.length = 1;
  op.first = 4;
  op.previous = previous.data();
  op.y.rows = 3;
  embedding(op);
  for (std::int64_t b = 0; b < 3; ++b)
    for (std::int64_t k = 0; k < c.d; ++k)
      EXPECT_EQ(op.y.row(b)[k], whole.forward().y.row(b * 6 + 4)[k]);
}

TEST(Embedding, RejectsWrongInputs) {
  Problem<float> p({2, 7, 3, {2, 3}});
  auto op = p.forward();
  op.first = 1;
  EXPECT_EQ(error_of([&] { embedding(op); }), "embedding: first is 1 but previous has no memory");
  op.previous = p.tokens.data();
  EXPECT_EQ(error_of([&] { embedding(op); }), "embedding: the axes hold 6 positions, want 7");
  op = p.forward();
  op.tokens = nullptr;
  EXPECT_EQ(error_of([&] { embedding(op); }), "embedding: no tokens for batch 2 of length 7");
  op = p.forward();
  op.bytes.rows = 255;
  EXPECT_EQ(error_of([&] { embedding(op); }), "embedding: bytes is 255x3, want 256x3");
  op = p.forward();
  op.axes[1].cols = 2;
  EXPECT_EQ(error_of([&] { embedding(op); }), "embedding: axis table is 3x2, want 3x3");
  op = p.forward();
  op.axes[0].rows = 0;
  EXPECT_EQ(error_of([&] { embedding(op); }), "embedding: an axis has extent 0, want 1 or more");
  auto back = p.backward();
  back.daxes.pop_back();
  EXPECT_EQ(error_of([&] { embedding_backward(back); }),
            "embedding_backward: the axes hold 2 positions, want 6");
}

}  // namespace

}  // namespace longstride::ops
