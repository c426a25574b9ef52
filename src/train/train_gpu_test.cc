// Whole runs on the GPU: resumed to the same bits, and moved between devices.
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>

#include "device/device.h"
#include "files/checkpoint.h"
#include "files/files.h"
#include "longstride/error.h"
#include "longstride/train.h"
#include "model/run_state.h"
#include "train/training_fixture.h"

namespace longstride {
namespace {

namespace fs = std::filesystem;

class CudaTrain : public test::TrainingFixture {
 protected:
  void SetUp() override {
    if (device::devices().empty()) GTEST_SKIP() << "no CUDA device: " << device::why_none();
  }

  TrainOptions on(const std::string& device, const Config& config, const std::string& name) const {
    TrainOptions out = options(config, name);
    out.device = device;
    return out;
  }
};

bool same_bits(const std::vector<float>& a, const std::vector<float>& b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0;
}

RunState state_of(const TrainResult& result) {
  return parse_run_state(read_file(result.checkpoint / "state.json"), "state.json");
}

TEST_F(CudaTrain, StoppedAndResumedEndsInTheSameBits) {
  for (const char* precision : {"bf16", "f32", "fp16"}) {
    Config config = test::small_config();
    config.train.precision = precision;
    config.train.validate_every = 4;
    config.train.checkpoint_every = 5;
    const std::string name = precision;
    const TrainResult through = train(on("cuda", config, name + " through"), {});
    TrainOptions parts = on("cuda", config, name + " parts");
    for (const std::int64_t stop : {1, 2, 5, 6, 11}) {
      parts.stop_at = stop;
      const TrainResult part = train(parts, {});
      EXPECT_TRUE(part.stopped);
      EXPECT_EQ(part.step, stop);
    }
    parts.stop_at.reset();
    const TrainResult end = train(parts, {});
    EXPECT_EQ(end.bits, through.bits);
    EXPECT_EQ(end.best_validation_bits, through.best_validation_bits);
    EXPECT_TRUE(same_bits(tensors(through.checkpoint, config), tensors(end.checkpoint, config)));
    EXPECT_EQ(state_of(end).loss_scale, state_of(through).loss_scale);
    EXPECT_EQ(state_of(end).device, "cuda");
    EXPECT_EQ(state_of(end).loss_scale > 1, name == "fp16");
  }
}

TEST_F(CudaTrain, ReportsEveryStepOnceAndInOrder) {
  Config config = test::small_config();
  config.train.steps = 40;
  config.train.validate_every = 7;
  config.train.checkpoint_every = 9;
  std::int64_t steps = 0;
  std::vector<std::int64_t> validated, saved;
  TrainObserver observer;
  observer.on_plan = [&](const MemoryPlan& plan) {
    EXPECT_EQ(plan.device, device::devices()[0].name);
    EXPECT_EQ(plan.precision, "bf16");  // "auto" there
  };
  observer.on_step = [&](const StepReport& r) {
    EXPECT_EQ(r.step, ++steps);
    EXPECT_GT(r.seconds, 0);
    EXPECT_GT(r.peak_flops_per_second, 1e12);
    EXPECT_GT(r.memory, 0);
  };
  observer.on_validation = [&](const ValidationReport& v) {
    EXPECT_EQ(v.step, steps);
    validated.push_back(v.step);
  };
  observer.on_checkpoint = [&](std::int64_t step, const fs::path&) {
    EXPECT_EQ(step, steps);
    saved.push_back(step);
  };
  const TrainResult result = train(on("auto", config, "run"), observer);
  EXPECT_EQ(steps, 40);
  EXPECT_EQ(validated, (std::vector<std::int64_t>{7, 14, 21, 28, 35, 40}));
  for (const std::int64_t step : {9, 18, 27, 36, 40})
    EXPECT_NE(std::find(saved.begin(), saved.end(), step), saved.end()) << step;
  EXPECT_FALSE(verify_checkpoint(result.checkpoint).has_value());
}

TEST_F(CudaTrain, StopsOnRequestWithWhatWasUnderWay) {
  Config config = test::small_config();
  config.train.steps = 1000;
  std::int64_t asked = 0, last = 0;
  TrainObserver observer;
  observer.on_step = [&](const StepReport& r) { last = r.step; };
  observer.stop_requested = [&] { return ++asked >= 5; };
  const TrainResult result = train(on("cuda", config, "run"), observer);
  EXPECT_TRUE(result.stopped);
  EXPECT_GE(result.step, 5);
  EXPECT_LE(result.step, 7);
  EXPECT_EQ(result.step, last);
  EXPECT_EQ(state_of(result).step, last);
}

TEST_F(CudaTrain, ARunMovesBetweenDevices) {
  Config config = test::small_config();
  config.train.lr = 1e-3;
  config.train.precision = "f32";
  const TrainResult alone = train(on("cpu", config, "alone"), {});
  std::vector<std::string> warnings;
  TrainObserver observer;
  observer.on_warning = [&](const std::string& line) { warnings.push_back(line); };
  TrainResult moved;
  const std::pair<const char*, std::int64_t> legs[] = {{"cpu", 4}, {"cuda", 8}, {"cpu", 12}};
  for (const auto& [device, until] : legs) {
    TrainOptions leg = on(device, config, "moved");
    leg.stop_at = until;
    moved = train(leg, observer);
    EXPECT_EQ(moved.step, until);
    EXPECT_EQ(state_of(moved).device, device);
  }
  ASSERT_EQ(warnings.size(), 2u);
  EXPECT_NE(warnings[0].find("device cpu there, cuda here"), std::string::npos) << warnings[0];
  EXPECT_NE(warnings[1].find("device cuda there, cpu here"), std::string::npos) << warnings[1];
  EXPECT_NEAR(moved.bits, alone.bits, 1e-5);
  const auto got = tensors(moved.checkpoint, config), want = tensors(alone.checkpoint, config);
  ASSERT_EQ(got.size(), want.size());
  double difference = 0, size = 0;
  for (std::size_t i = 0; i < got.size(); ++i) {
    difference += std::pow(double{got[i]} - double{want[i]}, 2);
    size += std::pow(double{want[i]}, 2);
  }
  EXPECT_LE(std::sqrt(difference / size), 1e-4);
}

TEST_F(CudaTrain, DivergenceStopsAndSavesNothingNonFinite) {
  for (const char* precision : {"f32", "bf16", "fp16"}) {
    Config config = test::small_config();
    config.train.precision = precision;
    config.train.checkpoint_every = 1;
    config.train.lr = 1e37;
    config.train.warmup = 0;
    const std::string name = precision;
    try {
      train(on("cuda", config, name), {});
      ADD_FAILURE() << "no error in " << precision;
    } catch (const Error& e) {
      EXPECT_EQ(e.fault, Fault::numerics) << e.what();
    }
    for (const auto& one : list_checkpoints(run(name)))
      for (const float value : tensors(one.folder, config)) ASSERT_TRUE(std::isfinite(value));
  }
}

}  // namespace
}  // namespace longstride
