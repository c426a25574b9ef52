#include "train/training_step.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <limits>

#include "base/threads.h"
#include "longstride/error.h"
#include "train/training_fixture.h"

namespace longstride {
namespace {

using test::small_config;
using test::some_data;

struct Bench {
  explicit Bench(const Config& config, bool recompute = false)
      : layout(config.model),
        bytes(some_data(4000)),
        state(config, layout),
        step(test::at_once(config), layout, recompute, bytes.data(), {100, 3900}) {}
  ParameterLayout layout;
  std::vector<std::uint8_t> bytes;
  TrainState state;
  TrainingStep step;
};

// A few steps away from the start, where the output is no longer zero and all gradients flow.
void warm(Bench& bench) {
  for (int s = 0; s < 3; ++s) bench.step.run(bench.state);
}

bool same_bits(Vector<const float> a, Vector<const float> b) {
  return a.size == b.size &&
         std::memcmp(a.data, b.data, static_cast<std::size_t>(a.size) * sizeof(float)) == 0;
}

TEST(TrainingStep, AccumulationEqualsTheLargeBatch) {
  Config config = small_config();
  config.train.batch = 8;
  Bench whole(config);
  warm(whole);
  const double nats = whole.step.accumulate(whole.state);
  for (const std::int64_t parts : {2, 4, 8}) {
    config.train.micro_batch = 8 / parts;
    Bench split(config);
    std::memcpy(split.state.weights.data(), whole.state.weights.data(),
                static_cast<std::size_t>(whole.layout.extent) * sizeof(float));
    split.state.step = whole.state.step;
    EXPECT_NEAR(split.step.accumulate(split.state), nats, 1e-6 * nats);
    double difference = 0, size = 0;
    for (std::int64_t e = 0; e < whole.layout.extent; ++e) {
      const double w = whole.step.gradients()[e], s = split.step.gradients()[e];
      difference += (w - s) * (w - s);
      size += w * w;
    }
    EXPECT_GT(size, 0);
    EXPECT_LE(std::sqrt(difference / size), 1e-6) << parts << " micro-batches";
  }
}

TEST(TrainingStep, SameBitsForAnyThreadsAndWithRecompute) {
  const int before = threads();
  Bench one(small_config());
  set_threads(1);
  for (int s = 0; s < 5; ++s) one.step.run(one.state);
  for (const int count : {1, 2, 4}) {
    set_threads(count);
    Bench other(small_config(), /*recompute=*/count != 1);
    for (int s = 0; s < 5; ++s) other.step.run(other.state);
    EXPECT_TRUE(same_bits(one.state.weights.vector(), other.state.weights.vector())) << count;
    EXPECT_TRUE(same_bits(one.state.v.vector(), other.state.v.vector())) << count;
    EXPECT_TRUE(same_bits(one.state.evaluated(), other.state.evaluated())) << count;
  }
  set_threads(before);
}

// The masters are float32 in both: what differs is rounding within a step.
TEST(TrainingStep, Bf16LearnsAsFloatDoes) {
  Config config = small_config();
  config.train.steps = 60;
  Bench in_float(config);
  config.train.precision = "bf16";
  Bench in_bf16(config), again(config, /*recompute=*/true);
  double first = 0, float_bits = 0, bf16_bits = 0;
  for (int s = 0; s < 60; ++s) {
    float_bits = in_float.step.run(in_float.state).bits;
    bf16_bits = in_bf16.step.run(in_bf16.state).bits;
    again.step.run(again.state);
    if (s == 0) first = float_bits;
  }
  EXPECT_NE(float_bits, bf16_bits);
  EXPECT_NEAR(float_bits, bf16_bits, 0.03 * float_bits);
  EXPECT_LT(bf16_bits, 0.5 * first);
  EXPECT_TRUE(same_bits(in_bf16.state.weights.vector(), again.state.weights.vector()));
}

TEST(TrainingStep, StepsAreNumberedByTheState) {  // data and dropout differ from step to step
  Bench bench(small_config());
  const double first = bench.step.accumulate(bench.state);
  EXPECT_EQ(first, bench.step.accumulate(bench.state));
  ++bench.state.step;
  warm(bench);
  const double here = bench.step.accumulate(bench.state);
  --bench.state.step;
  EXPECT_NE(here, bench.step.accumulate(bench.state));
}

TEST(TrainingStep, ClipBoundsTheUpdate) {
  Config config = small_config();
  config.train.clip = 1e-3;
  config.train.beta1 = 0;  // m is then the clipped gradient itself
  Bench bench(config);
  const StepOutcome outcome = bench.step.run(bench.state);
  EXPECT_GT(outcome.grad_norm, 1e-3);
  EXPECT_NEAR(ops::global_norm(Vector<const float>(bench.state.m.vector())), 1e-3, 1e-8);
}

TEST(TrainingStep, NonFiniteNumbersChangeNothing) {
  Config config = small_config();
  const ParameterLayout layout(config.model);
  for (const auto& tensor : layout.tensors) {
    for (const float bad : {std::nanf(""), std::numeric_limits<float>::infinity()}) {
      Bench bench(config);
      warm(bench);
      bench.state.weights[tensor.offset] = bad;
      const auto n = static_cast<std::size_t>(layout.extent);
      const std::vector<float> before(bench.state.weights.data(), bench.state.weights.data() + n);
      const std::vector<float> m(bench.state.m.data(), bench.state.m.data() + n);
      if (tensor.name == "bytes") continue;  // byte 0 does not occur in the data
      try {
        bench.step.run(bench.state);
        ADD_FAILURE() << "no error with " << bad << " in " << tensor.name;
      } catch (const Error& e) {
        EXPECT_EQ(e.fault, Fault::numerics);
        EXPECT_NE(std::string(e.what()).find("step 4"), std::string::npos) << e.what();
        EXPECT_NE(std::string(e.what()).find("gradient in "), std::string::npos) << e.what();
      }
      EXPECT_EQ(bench.state.step, 3);
      EXPECT_EQ(std::memcmp(before.data(), bench.state.weights.data(), n * sizeof(float)), 0);
      EXPECT_EQ(std::memcmp(m.data(), bench.state.m.data(), n * sizeof(float)), 0);
    }
  }
}

TEST(TrainingStep, SkipGoesOnTenTimesInARow) {
  Config config = small_config();
  config.train.on_nonfinite = "skip";
  Bench bench(config);
  warm(bench);
  const auto& bias = bench.layout.tensors.at(bench.layout.tensors.size() - 2);  // norm.bias
  const float good = bench.state.weights[bias.offset];
  bench.state.weights[bias.offset] = std::nanf("");
  for (int s = 0; s < 4; ++s) EXPECT_TRUE(bench.step.run(bench.state).skipped);
  bench.state.weights[bias.offset] = good;
  EXPECT_FALSE(bench.step.run(bench.state).skipped);
  EXPECT_EQ(bench.state.skipped, 4);
  EXPECT_EQ(bench.state.skipped_in_a_row, 0);
  EXPECT_EQ(first_nonfinite(bench.layout, bench.state.weights.vector()), "");
  bench.state.weights[bias.offset] = std::nanf("");
  for (int s = 0; s < 10; ++s) EXPECT_TRUE(bench.step.run(bench.state).skipped);
  EXPECT_THROW(bench.step.run(bench.state), Error);
  EXPECT_EQ(bench.state.skipped, 14);
}

TEST(TrainingStep, NamesTheFirstNonFiniteTensor) {
  const ParameterLayout layout(small_config().model);
  Buffer<float> flat(layout.extent);
  EXPECT_EQ(first_nonfinite(layout, flat.vector()), "");
  const auto& late = layout.tensors.back();
  flat[late.offset + late.size - 1] = -std::numeric_limits<float>::infinity();
  EXPECT_EQ(first_nonfinite(layout, flat.vector()), late.name);
  flat[layout.tensors[5].offset] = std::nanf("");
  EXPECT_EQ(first_nonfinite(layout, flat.vector()), layout.tensors[5].name);
}

}  // namespace
}  // namespace longstride
