// Steps on the GPU, one by one, against those of the CPU.
#include "train/engine.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <memory>

#include "data/dataset.h"
#include "device/gpu_test_util.h"
#include "longstride/error.h"
#include "train/memory.h"
#include "train/training_fixture.h"

namespace longstride {
namespace {

// A run without its folder: state, plan and engine.
struct Rig {
  Rig(const Config& given, const Dataset& data, bool cuda,
      const std::function<void(TrainState&)>& change = {})
      : config(given), layout(config.model), state(config, layout) {
    if (change) change(state);
    const StepMemory memory = cuda ? cuda_memory() : cpu_memory(available_memory());
    plan = plan_memory(config, layout, memory);
    config.train.micro_batch = plan.micro_batch;
    const EngineParts parts{config, layout, plan, data, state, {}};
    engine = cuda ? make_cuda_engine(parts) : make_cpu_engine(parts);
  }

  // `count` steps, as many under way at once as may be.
  std::vector<StepOutcome> run(std::int64_t count) {
    std::vector<StepOutcome> outcomes;
    std::int64_t submitted = 0;
    while (std::ssize(outcomes) < count) {
      for (; submitted < count && submitted - std::ssize(outcomes) < engine->depth(); ++submitted)
        engine->submit();
      outcomes.push_back(engine->collect());
    }
    engine->pull();
    return outcomes;
  }

  Config config;
  ParameterLayout layout;
  TrainState state;
  MemoryPlan plan;
  std::unique_ptr<Engine> engine;
};

bool same_bits(Vector<const float> a, Vector<const float> b) {
  return a.size == b.size &&
         std::memcmp(a.data, b.data, static_cast<std::size_t>(a.size) * sizeof(float)) == 0;
}

bool same_state(const TrainState& a, const TrainState& b) {
  return same_bits(a.weights.vector(), b.weights.vector()) &&
         same_bits(a.m.vector(), b.m.vector()) && same_bits(a.v.vector(), b.v.vector()) &&
         same_bits(a.average.vector(), b.average.vector());
}

double relative_l2(Vector<const float> got, Vector<const float> want) {
  double difference = 0, size = 0;
  for (std::int64_t i = 0; i < want.size; ++i) {
    const double g = got[i], w = want[i];
    difference += (g - w) * (g - w);
    size += w * w;
  }
  return std::sqrt(difference / size);
}

Config gpu_config(const std::string& precision) {
  Config config = test::small_config();
  config.train.precision = precision;
  return config;
}

class CudaEngine : public test::TrainingFixture {
 protected:
  void SetUp() override {
    if (device::devices().empty()) GTEST_SKIP() << "no CUDA device: " << device::why_none();
    data_ = std::make_unique<Dataset>(data());
  }
  const Dataset& bytes() const { return *data_; }

  // The bias of the last norm: a NaN there makes every loss one.
  static std::int64_t late_bias(const ParameterLayout& layout) {
    return layout.tensors.at(layout.tensors.size() - 2).offset;
  }

 private:
  std::unique_ptr<Dataset> data_;
};

TEST_F(CudaEngine, ThreeHundredStepsHaveTheLossOfTheCpu) {
  Config config = gpu_config("f32");
  config.train.steps = 300;
  config.train.lr = 2e-3;
  Rig gpu(config, bytes(), true), cpu(config, bytes(), false);
  const auto got = gpu.run(300), want = cpu.run(300);
  double worst = 0;
  for (std::size_t s = 0; s < 300; ++s) {
    worst = std::max(worst, std::abs(got[s].bits - want[s].bits));
    EXPECT_EQ(got[s].lr, want[s].lr);
    EXPECT_GT(got[s].seconds, 0);
  }
  EXPECT_LT(want.back().bits, 4);
  EXPECT_LE(worst, 1e-4);
  EXPECT_EQ(gpu.state.step, 300);
  RecordProperty("worst", text(worst));
  std::printf("300 steps: loss differs by %.2g bits at most, weights by %.2g\n", worst,
              relative_l2(gpu.state.weights.vector(), cpu.state.weights.vector()));
}

TEST_F(CudaEngine, FirstStepIsThatOfTheCpu) {
  for (const std::int64_t micro : {4, 2, 1}) {
    Config config = gpu_config("f32");
    config.train.micro_batch = micro;
    Rig gpu(config, bytes(), true), cpu(config, bytes(), false);
    const auto got = gpu.run(4), want = cpu.run(4);
    for (std::size_t s = 0; s < 4; ++s) {
      EXPECT_NEAR(got[s].bits, want[s].bits, 2e-6 * want[s].bits) << micro << " step " << s;
      EXPECT_NEAR(got[s].grad_norm, want[s].grad_norm, 1e-5 * want[s].grad_norm) << micro;
    }
    EXPECT_LE(relative_l2(gpu.state.evaluated(), cpu.state.evaluated()), 1e-5) << micro;
  }
}

TEST_F(CudaEngine, SameBitsAgainAndWithRecompute) {
  for (const char* precision : {"f32", "bf16", "fp16"}) {
    Config config = gpu_config(precision);
    config.model.layers = 5;
    Rig first(config, bytes(), true);
    const auto outcomes = first.run(8);
    for (const char* recompute : {"off", "on"}) {
      config.train.recompute = recompute;
      Rig again(config, bytes(), true);
      EXPECT_EQ(static_cast<bool>(again.plan.recompute), recompute == std::string("on"));
      const auto repeated = again.run(8);
      for (std::size_t s = 0; s < 8; ++s) EXPECT_EQ(repeated[s].bits, outcomes[s].bits);
      EXPECT_TRUE(same_state(first.state, again.state)) << precision << " " << recompute;
    }
  }
}

TEST_F(CudaEngine, LearnsInEveryPrecision) {
  for (const char* precision : {"f32", "bf16", "fp16"}) {
    Config config = gpu_config(precision);
    config.train.steps = 150;
    Rig rig(config, bytes(), true);
    const auto outcomes = rig.run(150);
    EXPECT_NEAR(outcomes.front().bits, 8, 1e-4) << precision;
    EXPECT_LT(outcomes.back().bits, 3) << precision;
  }
}

TEST_F(CudaEngine, ScoresAsTheCpuDoes) {
  Config config = gpu_config("f32");
  config.train.validate_every = 1;
  Rig gpu(config, bytes(), true), cpu(config, bytes(), false);
  gpu.run(6);
  std::memcpy(cpu.state.average.data(), gpu.state.average.data(),
              static_cast<std::size_t>(gpu.layout.extent) * sizeof(float));
  for (const std::int64_t symbols : {1, 31, 32, 33, 128, 300}) {
    const double want = cpu.engine->score(bytes().data() + 7, symbols);
    EXPECT_NEAR(gpu.engine->score(bytes().data() + 7, symbols), want, 2e-6 * want) << symbols;
  }
  Rig never(config, bytes(), true);
  const auto more = gpu.run(3), straight = never.run(9);
  EXPECT_EQ(more.back().bits, straight.back().bits);  // scoring has changed nothing
  EXPECT_TRUE(same_state(gpu.state, never.state));
}

TEST_F(CudaEngine, ANonFiniteStepStopsAndChangesNothing) {
  for (const char* precision : {"f32", "bf16", "fp16"}) {
    const Config config = gpu_config(precision);
    Rig rig(config, bytes(), true, [&](TrainState& state) {
      state.weights[late_bias(ParameterLayout(config.model))] = std::nanf("");
    });
    const TrainState before(config, rig.layout);
    try {
      rig.run(3);
      ADD_FAILURE() << "no error in " << precision;
    } catch (const Error& e) {
      EXPECT_EQ(e.fault, Fault::numerics);
      const std::string message = e.what();
      EXPECT_NE(message.find("train: step 1: loss is nan"), std::string::npos) << message;
      EXPECT_NE(message.find("gradient in bytes"), std::string::npos) << message;
    }
    EXPECT_EQ(rig.state.step, 0);
    rig.engine->pull();
    EXPECT_TRUE(same_bits(rig.state.m.vector(), before.m.vector()));
    EXPECT_TRUE(same_bits(rig.state.average.vector(), before.average.vector()));
  }
}

TEST_F(CudaEngine, SkipGoesOnTenTimesInARow) {
  Config config = gpu_config("f32");
  config.train.on_nonfinite = "skip";
  Rig rig(config, bytes(), true, [&](TrainState& state) {
    state.weights[late_bias(ParameterLayout(config.model))] = std::nanf("");
  });
  for (const StepOutcome& outcome : rig.run(10)) EXPECT_TRUE(outcome.skipped);
  EXPECT_EQ(rig.state.skipped, 10);
  EXPECT_EQ(rig.state.skipped_in_a_row, 10);
  EXPECT_EQ(rig.state.step, 10);
  try {
    rig.run(1);
    ADD_FAILURE() << "no error";
  } catch (const Error& e) {
    EXPECT_NE(std::string(e.what()).find("after 10 skipped updates"), std::string::npos)
        << e.what();
  }
}

TEST_F(CudaEngine, AnOverflowSkipsTheStepAndHalvesTheLossScale) {
  const Config config = gpu_config("fp16");
  Rig rig(config, bytes(), true, [](TrainState& state) { state.loss_scale = 0x1p+40; });
  const TrainState before(config, rig.layout);
  const auto first = rig.run(1);
  EXPECT_TRUE(first[0].skipped);
  EXPECT_TRUE(std::isfinite(first[0].bits));
  EXPECT_EQ(rig.state.loss_scale, 0x1p+39);
  EXPECT_TRUE(same_state(rig.state, before));
  std::int64_t skipped = 1;
  for (const StepOutcome& outcome : rig.run(40)) skipped += outcome.skipped;
  EXPECT_GT(skipped, 5);
  EXPECT_LT(skipped, 40);
  EXPECT_EQ(rig.state.skipped, skipped);
  EXPECT_EQ(rig.state.skipped_in_a_row, 0);
  EXPECT_EQ(first_nonfinite(rig.layout, rig.state.weights.vector()), "");
}

TEST_F(CudaEngine, LossScaleBeginsAt65536AndGrows) {
  const Config config = gpu_config("fp16");
  Rig rig(config, bytes(), true);
  const auto outcomes = rig.run(5);
  EXPECT_EQ(rig.state.skipped, 0);
  EXPECT_NEAR(rig.state.loss_scale, 65536 * std::pow(1.0003466337, 5), 1e-6);
  Rig in_float(gpu_config("f32"), bytes(), true);
  const auto want = in_float.run(5);
  EXPECT_NEAR(outcomes[4].bits, want[4].bits, 0.01);
  EXPECT_NEAR(outcomes[4].grad_norm, want[4].grad_norm, 0.01 * want[4].grad_norm);
}

TEST_F(CudaEngine, TakesTheMemoryThatIsPlanned) {
  for (const char* recompute : {"off", "on"}) {
    Config config = gpu_config("bf16");
    config.model.layers = 12;
    config.model.width = 256;
    config.model.heads = 4;
    config.model.context = 4096;
    config.model.attention = {"fixed(64, 16)", "local(64), column(64)"};
    config.train.recompute = recompute;
    config.train.batch = 2;
    const std::vector<std::uint8_t> sequence = test::some_data(20000);
    test::put(folder_ / "long", {reinterpret_cast<const char*>(sequence.data()), sequence.size()});
    const Dataset longer(folder_ / "long");
    Rig rig(config, longer, true);
    rig.run(4);
    const auto planned = static_cast<double>(rig.plan.total());
    std::printf("recompute %s: planned %.1f MB, taken %.1f MB\n", recompute, planned * 1e-6,
                static_cast<double>(rig.engine->memory()) * 1e-6);
    EXPECT_LE(static_cast<double>(rig.engine->memory()), planned + (256 << 20));
    EXPECT_GE(static_cast<double>(rig.engine->memory()), 0.9 * planned);
  }
}

TEST_F(CudaEngine, APlanThatDoesNotFitNamesTheCardAndWhatFits) {
  Config config = gpu_config("bf16");
  config.train.batch = 64;
  config.train.recompute = "off";
  config.train.micro_batch = 16;
  StepMemory memory = cuda_memory();
  const ParameterLayout layout(config.model);
  memory.available = plan_memory(config, layout, memory).total();
  config.train.micro_batch = 64;
  try {
    require_fit(plan_memory(config, layout, memory), config, layout, memory);
    ADD_FAILURE() << "no error";
  } catch (const Error& e) {
    EXPECT_EQ(e.fault, Fault::environment);
    const std::string message = e.what();
    EXPECT_NE(message.find(device::devices()[0].name), std::string::npos) << message;
    EXPECT_NE(message.find("train.micro_batch=16 is the largest that fits"), std::string::npos)
        << message;
  }
}

}  // namespace
}  // namespace longstride
