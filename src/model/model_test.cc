// The network as a whole: against an independent formula, its gradient against finite differences,
// causality, decoding, determinism, depth.
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <random>
#include <string>
#include <vector>

#include "as_good_as.h"
#include "base/threads.h"
#include "longstride/error.h"
#include "model/block.h"
#include "model/formula.h"
#include "model/inference.h"
#include "model/model_test_util.h"
#include "model/parameters.h"
#include "model/training_pass.h"
#include "ops/adamw/adamw.h"

namespace longstride {
namespace {

ModelConfig small_model(std::vector<std::string> attention, double dropout = 0) {
  ModelConfig m;
  m.layers = 2;
  m.width = 12;
  m.heads = 2;
  m.qk_width = 8;
  m.ff_width = 20;
  m.context = 19;
  m.attention = std::move(attention);
  m.dropout = dropout;
  return m;
}

using test::random_tokens;
using test::random_weights;
using test::view;

const std::vector<std::vector<std::string>> kPatterns = {
    {"dense"},
    {"local(5)", "column(5)"},
    {"row(4) + summary(4, 1)"},
    {"local(4) + column(4)", "global(2) + previous_row(5) + row(5)"},
    {"local(3), random(2, 7, 4) + local(4)"},
};

class ModelPatterns : public testing::TestWithParam<int> {
 protected:
  std::vector<std::string> pattern() const {
    return kPatterns[static_cast<std::size_t>(GetParam())];
  }
};
INSTANTIATE_TEST_SUITE_P(All, ModelPatterns, testing::Range(0, 5));

TEST_P(ModelPatterns, LossIsThatOfTheFormula) {
  const auto m = small_model(pattern());
  const auto w = random_weights<double>(m, 1);
  const auto tokens = random_tokens(2 * m.context, 2);
  TrainingPass<double> pass(m, 2, false);
  const double got = pass.run(view(w), tokens.data(), 1, {}, {});
  double want = 0;
  for (int b = 0; b < 2; ++b)
    for (const double nats : formula::nats(m, w, tokens.data() + b * m.context)) want += nats;
  EXPECT_NEAR(got, want, 1e-10 * want);
}

TEST_P(ModelPatterns, GradientIsThatOfFiniteDifferences) {
  const auto m = small_model(pattern(), 0.2);
  auto w = random_weights<double>(m, 3);
  const auto tokens = random_tokens(2 * m.context, 4);
  const PassKey key{9, 17, 1};
  TrainingPass<double> pass(m, 2, true);
  std::vector<double> gradient(w.size());
  const double scale = 1.0 / static_cast<double>(tokens.size());
  pass.run(view(std::as_const(w)), tokens.data(), scale, key, view(gradient));

  // All elements of small tensors, some of large ones. One thread: the passes are tiny.
  set_threads(1);
  const ParameterLayout layout(m);
  std::vector<double> got, want;
  for (const auto& p : layout.tensors)
    for (std::int64_t e = 0; e < p.size; e += std::max<std::int64_t>(1, p.size / 20)) {
      double& x = w[static_cast<std::size_t>(p.offset + e)];
      const double before = x, h = 1e-5;
      x = before + h;
      const double up = pass.run(view(std::as_const(w)), tokens.data(), 1, key, {});
      x = before - h;
      const double down = pass.run(view(std::as_const(w)), tokens.data(), 1, key, {});
      x = before;
      want.push_back(scale * (up - down) / (2 * h));
      got.push_back(gradient[static_cast<std::size_t>(p.offset + e)]);
    }
  set_threads(0);
  EXPECT_LE(test::relative_l2(got, want), 1e-7);
}

TEST_P(ModelPatterns, FloatIsCloseToDouble) {
  const auto m = small_model(pattern(), 0.1);
  const auto w = random_weights<float>(m, 5);
  const std::vector<double> w64(w.begin(), w.end());
  const auto tokens = random_tokens(3 * m.context, 6);
  TrainingPass<float> pass(m, 3, false);
  TrainingPass<double> truth(m, 3, false);
  std::vector<float> g(w.size());
  std::vector<double> g64(w.size());
  const double nats = pass.run(view(w), tokens.data(), 0.5, {1, 2, 0}, view(g));
  const double nats64 = truth.run(view(w64), tokens.data(), 0.5, {1, 2, 0}, view(g64));
  EXPECT_NEAR(nats, nats64, 2e-6 * nats64);
  EXPECT_LE(test::relative_l2(g, g64), 2e-6);
}

// Values are rounded to 8 bits some twenty times on their way through two blocks.
TEST_P(ModelPatterns, Bf16IsCloseToDouble) {
  const auto m = small_model(pattern(), 0.1);
  const auto w = random_weights<float>(m, 5);
  const std::vector<double> w64(w.begin(), w.end());
  const auto tokens = random_tokens(3 * m.context, 6);
  TrainingPass<float> pass(m, 3, false, true);
  TrainingPass<double> truth(m, 3, false);
  std::vector<float> g(w.size());
  std::vector<double> g64(w.size());
  const double nats = pass.run(view(w), tokens.data(), 0.5, {1, 2, 0}, view(g));
  const double nats64 = truth.run(view(w64), tokens.data(), 0.5, {1, 2, 0}, view(g64));
  EXPECT_NE(nats, nats64);
  EXPECT_NEAR(nats, nats64, 2e-3 * nats64);
  EXPECT_LE(test::relative_l2(g, g64), 2e-2);
}

void expect_same_bits_any_way(const ModelConfig& m, bool in_bf16) {
  const auto w = random_weights<float>(m, 7);
  const auto tokens = random_tokens(4 * m.context, 8);
  std::vector<float> first;
  for (const int t : {1, 2, 4})
    for (const bool recompute : {false, true}) {
      set_threads(t);
      TrainingPass<float> pass(m, 4, recompute, in_bf16);
      std::vector<float> g(w.size());
      pass.run(view(w), tokens.data(), 1, {5, 6, 0}, view(g));
      if (first.empty()) first = g;
      EXPECT_EQ(first, g) << t << " threads, recompute " << recompute << ", bf16 " << in_bf16;
    }
  set_threads(0);
}

TEST_P(ModelPatterns, RecomputeAndThreadsChangeNoBit) {
  for (const bool in_bf16 : {false, true})
    expect_same_bits_any_way(small_model(pattern(), 0.3), in_bf16);
}

template <class T>
void decoder_equals_full_pass(const ModelConfig& m) {
  const auto w = random_weights<T>(m, 9);
  FullPass<T> full(m);
  Decoder<T> decoder(m, view(w));
  for (int round = 0; round < 2; ++round) {  // the second after restart(), other bytes
    const auto tokens = random_tokens(m.context, 10 + static_cast<unsigned>(round));
    std::vector<T> want(static_cast<std::size_t>(m.context * 256));
    full.logits(view(w), tokens.data(), m.context, matrix(want.data(), m.context, 256));
    decoder.restart();
    for (std::int64_t i = 0; i < m.context; ++i) {
      const auto got = decoder.step(i > 0 ? tokens[static_cast<std::size_t>(i - 1)] : 0);
      ASSERT_EQ(0, std::memcmp(got.data, want.data() + i * 256, 256 * sizeof(T)))
          << "position " << i << " round " << round;
    }
    EXPECT_THROW(decoder.step(0), Error);
  }
}

TEST_P(ModelPatterns, DecoderGivesTheBitsOfTheFullPass) {
  decoder_equals_full_pass<float>(small_model(pattern()));
  decoder_equals_full_pass<double>(small_model(pattern()));
}

TEST_P(ModelPatterns, AShorterPassGivesTheSameBits) {
  const auto m = small_model(pattern());
  const auto w = random_weights<float>(m, 11);
  const auto tokens = random_tokens(m.context, 12);
  FullPass<float> full(m);
  std::vector<float> whole(static_cast<std::size_t>(m.context)), part(whole.size());
  full.nats(view(w), tokens.data(), m.context, view(whole));
  for (std::int64_t n = 1; n < m.context; n += 3) {
    full.nats(view(w), tokens.data(), n, {part.data(), n});
    for (std::int64_t i = 0; i < n; ++i)
      ASSERT_EQ(whole[static_cast<std::size_t>(i)], part[static_cast<std::size_t>(i)]);
  }
}

TEST_P(ModelPatterns, AChangedByteChangesNothingBefore) {
  const auto m = small_model(pattern());
  const auto w = random_weights<float>(m, 13);
  auto tokens = random_tokens(m.context, 14);
  FullPass<float> full(m);
  std::vector<float> before(static_cast<std::size_t>(m.context * 256)), after(before.size());
  full.logits(view(w), tokens.data(), m.context, matrix(before.data(), m.context, 256));
  for (std::int64_t t = 0; t < m.context; ++t) {
    auto changed = tokens;
    changed[static_cast<std::size_t>(t)] ^= 0x55;
    full.logits(view(w), changed.data(), m.context, matrix(after.data(), m.context, 256));
    const auto prefix = static_cast<std::size_t>((t + 1) * 256);  // row t predicts byte t
    EXPECT_EQ(0, std::memcmp(before.data(), after.data(), prefix * sizeof(float))) << t;
    if (t + 1 < m.context) {
      EXPECT_NE(0, std::memcmp(before.data() + prefix, after.data() + prefix, 256 * sizeof(float)));
    }
  }
}

TEST(Model, MicroBatchesAddUpToTheBatch) {
  const auto m = small_model({"local(5) + column(5)"}, 0.25);
  const auto w = random_weights<float>(m, 15);
  const auto tokens = random_tokens(4 * m.context, 16);
  std::vector<float> whole(w.size()), parts(w.size());
  TrainingPass<float> four(m, 4, false), two(m, 2, false);
  const double a = four.run(view(w), tokens.data(), 1, {1, 1, 0}, view(whole));
  const double b = two.run(view(w), tokens.data(), 1, {1, 1, 0}, view(parts)) +
                   two.run(view(w), tokens.data() + 2 * m.context, 1, {1, 1, 2}, view(parts));
  EXPECT_NEAR(a, b, 1e-6 * a);
  EXPECT_LE(test::relative_l2(parts, whole), 1e-6);
}

// Two row blocks at once against one at a time, in which no sequence shares a block.
TEST(Model, RowBlocksChangeNothingButRounding) {
  auto m = small_model({"local(5) + column(310)", "row(20)"}, 0.25);
  m.context = 3100;
  const auto w = random_weights<float>(m, 18);
  const std::vector<double> w64(w.begin(), w.end());
  const auto tokens = random_tokens(4 * m.context, 19);
  ASSERT_EQ(BlockShape(m, 4).row_block(), 6208);
  TrainingPass<double> four(m, 4, true), one(m, 1, true);
  std::vector<double> whole(w.size()), parts(w.size());
  const double a = four.run(view(w64), tokens.data(), 1, {1, 1, 0}, view(whole));
  double b = 0;
  for (std::int64_t s = 0; s < 4; ++s)
    b += one.run(view(w64), tokens.data() + s * m.context, 1, {1, 1, s}, view(parts));
  EXPECT_NEAR(a, b, 1e-12 * a);
  EXPECT_LE(test::relative_l2(parts, whole), 1e-12);
  expect_same_bits_any_way(m, false);
  expect_same_bits_any_way(m, true);
}

TEST(Model, AnUntrainedNetworkPaysEightBitsAByte) {
  ModelConfig m = small_model({"dense"});
  const ParameterLayout layout(m);
  std::vector<float> w(static_cast<std::size_t>(layout.extent));
  initialise(layout, 1, view(w));
  const auto tokens = random_tokens(m.context, 17);
  std::vector<float> nats(static_cast<std::size_t>(m.context));
  FullPass<float>(m).nats(view(std::as_const(w)), tokens.data(), m.context, view(nats));
  for (const float n : nats) EXPECT_FLOAT_EQ(n / std::log(2.0f), 8.0f);
}

TEST(Model, InitialDeviationsAreThoseOfThePaper) {
  ModelConfig m = small_model({"dense"});
  m.width = 64;
  m.qk_width = 0;
  m.ff_width = 0;
  const ParameterLayout layout(m);
  std::vector<double> w(static_cast<std::size_t>(layout.extent));
  initialise(layout, 3, view(w));
  for (const auto& p : layout.tensors) {
    double sum = 0, squares = 0;
    for (std::int64_t e = 0; e < p.size; ++e) {
      const double x = w[static_cast<std::size_t>(p.offset + e)];
      sum += x;
      squares += x * x;
    }
    const auto n = static_cast<double>(p.size);
    const double mean = sum / n, deviation = std::sqrt(squares / n - mean * mean);
    if (p.deviation == 0) {
      EXPECT_EQ(mean, p.constant) << p.name;
    } else {
      EXPECT_NEAR(mean, 0, 4 * p.deviation / std::sqrt(n)) << p.name;
      EXPECT_NEAR(deviation, p.deviation, 4 * p.deviation / std::sqrt(2 * n)) << p.name;
    }
  }
}

// Deep networks are the point of the paper: 128 layers learn from step 1, without a NaN.
TEST(Model, AHundredAndTwentyEightLayersTrain) {
  ModelConfig m;
  m.layers = 128;
  m.width = 16;
  m.heads = 2;
  m.ff_width = 32;
  m.context = 64;
  m.attention = {"column(8)", "local(8)", "local(8)", "local(8)"};
  const ParameterLayout layout(m);
  std::vector<float> w(static_cast<std::size_t>(layout.extent)), first(w.size()), second(w.size());
  initialise(layout, 1, view(w));
  const std::string sentence = "the quick brown fox jumps over the lazy dog and ";
  std::vector<std::uint8_t> tokens(static_cast<std::size_t>(4 * m.context));
  for (std::size_t i = 0; i < tokens.size(); ++i)
    tokens[i] = static_cast<std::uint8_t>(sentence[i % sentence.size()]);
  TrainingPass<float> pass(m, 4, true);
  std::vector<double> losses;
  for (int step = 1; step <= 40; ++step) {
    std::vector<float> g(w.size());
    const double scale = 1.0 / static_cast<double>(tokens.size());
    losses.push_back(scale * pass.run(view(std::as_const(w)), tokens.data(), scale, {}, view(g)));
    ASSERT_TRUE(std::isfinite(losses.back())) << "step " << step;
    ops::AdamW<float> update{view(w), view(first), view(second), {}, view(std::as_const(g))};
    update.lr = 3e-3;
    update.grad_scale = std::min(1.0, 1 / ops::global_norm(view(std::as_const(g))));
    update.step = step;
    ops::adamw(update);
  }
  EXPECT_NEAR(losses[0], std::log(256.0), 1e-4);
  EXPECT_LT(losses[4], losses[0]);
  EXPECT_LT(losses.back(), 0.75 * losses[0]);
}

}  // namespace
}  // namespace longstride
