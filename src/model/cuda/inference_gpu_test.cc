#include "model/cuda/inference_cuda.h"

#include <random>

#include "as_good_as.h"
#include "device/gpu_test_util.h"
#include "model/cuda/training_pass_cuda.h"
#include "model/inference.h"
#include "model/model_test_util.h"
#include "tensor/bf16.h"

namespace longstride {
namespace {

class DeviceDecoderTest : public test::GpuTest {};

ModelConfig small_model(std::vector<std::string> attention, std::int64_t context) {
  ModelConfig m;
  m.layers = 3;
  m.width = 24;
  m.heads = 2;
  m.qk_width = 20;
  m.ff_width = 52;
  m.context = context;
  m.attention = std::move(attention);
  return m;
}

std::vector<float> random_weights(const ModelConfig& m, unsigned seed) {
  return test::random_weights<float>(m, seed, 0.2);
}
using test::random_tokens;
using test::view;

// Logits [B, N, 256] of tokens [B, N], position by position: the first `prompt` bytes are appended
// at once, so that logits of the positions before are left out (0).
template <class A>
std::vector<float> decode(DeviceDecoder<A>& decoder, const std::vector<std::uint8_t>& tokens,
                          std::int64_t B, std::int64_t N, std::int64_t prompt = 0) {
  std::vector<float> all(static_cast<std::size_t>(B * N * 256));
  decoder.restart(B);
  const auto bytes = [&](std::int64_t first, std::int64_t count) {
    return Matrix<const std::uint8_t>{tokens.data() + first, B, count, N};
  };
  decoder.append(bytes(0, prompt));
  for (std::int64_t i = prompt; i < N; ++i) {
    const auto logits = decoder.logits();
    for (std::int64_t b = 0; b < B; ++b)
      std::copy_n(logits.row(b), 256, all.data() + (b * N + i) * 256);
    if (i + 1 < N) decoder.append(bytes(i, 1));
  }
  return all;
}

// As score() gives them.
template <class A>
std::vector<float> whole(const ModelConfig& m, const std::vector<float>& w,
                         const std::vector<std::uint8_t>& tokens, std::int64_t B) {
  DeviceTrainingPass<A> pass(m, B, {.trains = false});
  const auto weights = test::to_device(w);
  const auto in = test::to_device(tokens);
  const auto logits = test::poisoned_device<float>(B * m.context * 256);
  pass.begin(nullptr, weights.vector());
  pass.score(nullptr, in.data(), B, m.context, {}, logits.matrix(B * m.context, 256));
  return test::to_host(logits);
}

std::vector<double> exact(const ModelConfig& m, const std::vector<float>& w,
                          const std::vector<std::uint8_t>& tokens, std::int64_t B) {
  const std::vector<double> w64(w.begin(), w.end());
  std::vector<double> all(static_cast<std::size_t>(B * m.context * 256));
  FullPass<double> pass(m);
  for (std::int64_t b = 0; b < B; ++b)
    pass.logits({w64.data(), std::ssize(w64)}, tokens.data() + b * m.context, m.context,
                matrix(all.data() + b * m.context * 256, m.context, 256));
  return all;
}

const std::vector<std::vector<std::string>> kPatterns = {
    {"dense"},
    {"local(5)", "column(5)"},
    {"row(4) + summary(4, 1)"},
    {"fixed(8, 2)"},
    {"local(4) + column(4)", "global(2) + previous_row(5) + row(5)"},
    {"local(3), random(2, 7, 4) + local(4)"},
};

TEST_F(DeviceDecoderTest, GivesTheLogitsOfTheFullPassForEachPattern) {
  unsigned seed = 1;
  for (const auto& pattern : kPatterns)
    for (const std::int64_t context : {1, 37, 300}) {
      SCOPED_TRACE(pattern[0] + ", context " + std::to_string(context));
      const auto m = small_model(pattern, context);
      const auto w = random_weights(m, ++seed);
      const auto tokens = random_tokens(3 * context, seed);
      DeviceDecoder<float> decoder(m, view(w), 3);
      const auto got = decode(decoder, tokens, 3, context);
      EXPECT_LE(test::relative_l2(got, exact(m, w, tokens, 3)), 2e-6);
      EXPECT_LE(test::relative_l2(got, whole<float>(m, w, tokens, 3)), 1e-5);
    }
}

TEST_F(DeviceDecoderTest, Bf16LosesWhatTheFullPassLoses) {
  for (const auto& pattern : kPatterns) {
    SCOPED_TRACE(pattern[0]);
    const auto m = small_model(pattern, 150);
    const auto w = random_weights(m, 21);
    const auto tokens = random_tokens(2 * m.context, 22);
    const auto truth = exact(m, w, tokens, 2);
    DeviceDecoder<bf16> decoder(m, view(w), 2);
    const double got = test::relative_l2(decode(decoder, tokens, 2, m.context), truth);
    EXPECT_LE(got, 2 * test::relative_l2(whole<bf16>(m, w, tokens, 2), truth));
    EXPECT_GT(got, 1e-4);  // it is bf16
  }
}

// Whatever stands beside a sequence, whatever was decoded before, and however its bytes come.
TEST_F(DeviceDecoderTest, SameBitsForAnyBatchAndPrompt) {
  const auto m = small_model({"strided(12)", "fixed(8, 4)"}, 200);
  const auto w = random_weights(m, 31);
  const auto tokens = random_tokens(kMostDecoded * m.context, 32);
  DeviceDecoder<bf16> decoder(m, view(w), kMostDecoded);
  const auto want = decode(decoder, tokens, kMostDecoded, m.context);
  for (const std::int64_t count : {1, 3, 5, 16})
    for (const std::int64_t prompt : {0, 1, 77, 199}) {
      const auto got = decode(decoder, tokens, count, m.context, prompt);
      for (std::int64_t b = 0; b < count; ++b)
        for (std::int64_t e = prompt * 256; e < m.context * 256; ++e) {
          const auto at = static_cast<std::size_t>(b * m.context * 256 + e);
          ASSERT_EQ(got[at], want[at]) << count << " sequences, prompt " << prompt << ", " << at;
        }
    }
}

TEST_F(DeviceDecoderTest, TakesTheMemoryItSays) {
  const auto m = small_model({"strided(12)", "fixed(8, 4)"}, 5000);
  const auto w = random_weights(m, 41);
  const auto bytes = DeviceDecoder<float>::bytes(m);
  const auto of_cache = [&](std::int64_t sequences) {
    return DeviceDecoder<float>(m, view(w), sequences).cache_bytes();
  };
  EXPECT_EQ(of_cache(4), 4 * of_cache(1));
  EXPECT_GT(bytes.sequence, of_cache(1));
  EXPECT_LT(bytes.sequence, of_cache(1) + of_cache(1) / 4 + 20000);
}

TEST_F(DeviceDecoderTest, TheContextHasAnEnd) {
  const auto m = small_model({"dense"}, 5);
  const auto w = random_weights(m, 51);
  DeviceDecoder<float> decoder(m, view(w), 2);
  const auto tokens = random_tokens(12, 52);
  const auto bytes = [&](std::int64_t count) {
    return Matrix<const std::uint8_t>{tokens.data(), 2, count, 6};
  };
  EXPECT_THROW(decoder.append(bytes(5)), Error);
  decoder.append(bytes(4));
  decoder.logits();
  EXPECT_EQ(decoder.known(), 4);
  EXPECT_THROW(decoder.append(bytes(1)), Error);
  EXPECT_THROW(decoder.restart(3), Error);
  EXPECT_THROW(DeviceDecoder<float>(m, view(w), 17), Error);
}

}  // namespace
}  // namespace longstride
