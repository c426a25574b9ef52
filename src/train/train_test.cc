#include "longstride/train.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <fstream>
#include <nlohmann/json.hpp>

#include "files/checkpoint.h"
#include "files/files.h"
#include "longstride/error.h"
#include "model/model_files.h"
#include "train/run_lock.h"
#include "train/training_fixture.h"

namespace longstride {
namespace {

namespace fs = std::filesystem;

using Train = test::TrainingFixture;
using test::small_config;

bool same_bits(const std::vector<float>& a, const std::vector<float>& b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0;
}

// What a line of the log says beside times and speeds.
std::vector<std::string> lasting_lines(const fs::path& run) {
  std::ifstream file(run / "metrics.jsonl");
  std::vector<std::string> out;
  for (std::string line; std::getline(file, line);) {
    auto json = nlohmann::json::parse(line);
    for (const auto* key : {"seconds", "symbols_per_second", "flops_per_second"}) json.erase(key);
    out.push_back(json.dump());
  }
  return out;
}

std::string error_of(const TrainOptions& options, Fault fault, const TrainObserver& observer = {}) {
  try {
    train(options, observer);
    return "no error";
  } catch (const Error& e) {
    EXPECT_EQ(e.fault, fault) << e.what();
    return e.what();
  }
}

TEST_F(Train, LearnsAndReportsEverything) {
  Config config = small_config();
  config.train.steps = 150;
  config.train.ema = 0;
  config.train.validate_every = 50;
  int plans = 0, steps = 0, validations = 0, checkpoints = 0;
  double first = 0;
  TrainObserver observer;
  observer.on_plan = [&](const MemoryPlan& p) { plans += p.total() > 0; };
  observer.on_step = [&](const StepReport& r) {
    EXPECT_EQ(r.step, ++steps);
    EXPECT_EQ(r.symbols, r.step * 4 * 32);
    EXPECT_GT(r.flops_per_second, 0);
    EXPECT_GT(r.peak_flops_per_second, 0);
    EXPECT_GT(r.memory, 0);
    if (r.step == 1) first = r.bits;
  };
  observer.on_validation = [&](const ValidationReport& v) { validations += v.symbols == 200; };
  observer.on_checkpoint = [&](std::int64_t, const fs::path&) { ++checkpoints; };
  const TrainResult result = train(options(config, "run"), observer);
  EXPECT_EQ(plans, 1);
  EXPECT_EQ(steps, 150);
  EXPECT_EQ(validations, 3);
  EXPECT_GE(checkpoints, 1);
  EXPECT_NEAR(first, 8, 1e-4);  // the output starts at zero: every byte is as likely
  EXPECT_LT(result.bits, 3);
  EXPECT_EQ(result.step, 150);
  EXPECT_FALSE(result.stopped);
  EXPECT_EQ(lasting_lines(run("run")).size(), 153u);
  EXPECT_EQ(parse_config(read_file(run("run") / "config.toml"), "run").train.steps, 150);
  EXPECT_FALSE(verify_checkpoint(result.checkpoint).has_value());
}

TEST_F(Train, StoppedAndResumedEndsInTheSameBits) {
  Config config = small_config();
  config.train.validate_every = 4;
  config.train.checkpoint_every = 5;
  const TrainResult through = train(options(config, "through"), {});
  TrainOptions parts = options(config, "parts");
  for (const std::int64_t stop : {1, 5, 6, 11}) {
    parts.stop_at = stop;
    const TrainResult part = train(parts, {});
    EXPECT_TRUE(part.stopped);
    EXPECT_EQ(part.step, stop);
  }
  parts.stop_at.reset();
  std::int64_t resumed = -1;
  TrainObserver observer;
  observer.on_resume = [&](std::int64_t step, const fs::path&) { resumed = step; };
  const TrainResult end = train(parts, observer);
  EXPECT_EQ(resumed, 11);
  EXPECT_EQ(end.bits, through.bits);
  EXPECT_EQ(end.best_validation_bits, through.best_validation_bits);
  EXPECT_TRUE(same_bits(tensors(through.checkpoint, config), tensors(end.checkpoint, config)));
  EXPECT_EQ(lasting_lines(run("through")), lasting_lines(run("parts")));
}

TEST_F(Train, AFinishedRunIsLeftAlone) {
  const Config config = small_config();
  const TrainResult first = train(options(config, "run"), {});
  const auto log = read_file(run("run") / "metrics.jsonl");
  TrainObserver observer;
  observer.on_step = [](const StepReport&) { ADD_FAILURE() << "a step was made"; };
  const TrainResult again = train(options(config, "run"), observer);
  EXPECT_EQ(again.step, first.step);
  EXPECT_EQ(again.bits, first.bits);
  EXPECT_EQ(again.checkpoint, first.checkpoint);
  EXPECT_FALSE(again.stopped);
  EXPECT_EQ(read_file(run("run") / "metrics.jsonl"), log);
}

TEST_F(Train, ARunThatIsOnlyMeasuredLeavesNoCheckpoint) {
  TrainOptions measured = options(small_config(), "run");
  measured.save = false;
  EXPECT_TRUE(train(measured, {}).checkpoint.empty());
  EXPECT_TRUE(list_checkpoints(run("run")).empty());
}

TEST_F(Train, ValidationNeverTouchesTraining) {
  Config config = small_config();
  config.train.steps = 20;
  const auto never = train(options(config, "never"), {});
  config.train.validate_every = 3;
  config.train.checkpoint_every = 2;
  const auto often = train(options(config, "often"), {});
  EXPECT_TRUE(same_bits(tensors(never.checkpoint, config), tensors(often.checkpoint, config)));
}

TEST_F(Train, TheBestCheckpointStaysAndIsTheOneToLoad) {
  Config config = small_config();
  config.train.steps = 40;
  config.train.validate_every = 10;
  config.train.validate_symbols = 64;
  config.train.checkpoint_every = 1;
  config.train.keep_checkpoints = 2;
  config.train.ema = 0;
  std::int64_t best = 0;
  TrainObserver observer;
  observer.on_validation = [&](const ValidationReport& v) {
    if (v.best) best = v.step;
  };
  // Stopped between validations: whichever of 10, 20, 30 is best, newer checkpoints follow it.
  TrainOptions early = options(config, "run");
  early.stop_at = 35;
  train(early, observer);
  ASSERT_GE(best, 10);
  const auto kept = list_checkpoints(run("run"));
  ASSERT_EQ(kept.size(), 3u);
  EXPECT_EQ(kept[0].step, best);
  EXPECT_EQ(kept[1].step, 34);
  EXPECT_EQ(load_model(run("run"), {}).step, best);
  EXPECT_EQ(load_model(run("run") / "checkpoints", {}).step, best);
  EXPECT_EQ(load_model(kept[2].folder, {}).step, 35);
  EXPECT_EQ(load_model(kept[1].folder / "model.safetensors", {}).step, 34);

  int warnings = 0;  // the best one damaged: the newest, and a warning
  fs::resize_file(kept[0].folder / "model.safetensors", 100);
  EXPECT_EQ(load_model(run("run"), [&](const std::string&) { ++warnings; }).step, 35);
  EXPECT_EQ(warnings, 1);
}

TEST_F(Train, ADamagedCheckpointIsPassedOver) {
  Config config = small_config();
  config.train.checkpoint_every = 4;
  const TrainResult through = train(options(config, "run"), {});
  const auto good = tensors(through.checkpoint, config);
  const auto lines = lasting_lines(run("run"));
  fs::resize_file(through.checkpoint / "optimizer.safetensors", 1000);
  int warnings = 0;
  std::int64_t resumed = -1;
  TrainObserver observer;
  observer.on_warning = [&](const std::string&) { ++warnings; };
  observer.on_resume = [&](std::int64_t step, const fs::path&) { resumed = step; };
  const TrainResult again = train(options(config, "run"), observer);
  EXPECT_EQ(warnings, 1);
  EXPECT_EQ(resumed, 8);
  EXPECT_TRUE(same_bits(good, tensors(again.checkpoint, config)));
  EXPECT_EQ(lasting_lines(run("run")), lines);
}

TEST_F(Train, RefusesAnotherConfigOrOtherData) {
  Config config = small_config();
  TrainOptions first = options(config, "run");
  first.stop_at = 2;
  train(first, {});
  TrainOptions other = options(config, "run");
  other.config.train.lr = 0.5;
  other.config.model.attention = {"dense"};
  const std::string message = error_of(other, Fault::invalid_argument);
  EXPECT_NE(message.find("train.lr 0.01 there, 0.5 here"), std::string::npos) << message;
  EXPECT_NE(message.find("model.attention"), std::string::npos) << message;
  EXPECT_EQ(message.find("train.steps"), std::string::npos) << message;

  std::ofstream(folder_ / "data", std::ios::binary | std::ios::app) << "more";
  EXPECT_NE(error_of(options(config, "run"), Fault::invalid_argument).find("other data"),
            std::string::npos);
}

TEST_F(Train, AllowsWhatDoesNotChangeTheResultAndWarnsOfTheRest) {
  Config config = small_config();
  TrainOptions first = options(config, "run");
  first.stop_at = 2;
  train(first, {});
  std::vector<std::string> warnings;
  TrainObserver observer;
  observer.on_warning = [&](const std::string& line) { warnings.push_back(line); };
  TrainOptions more = options(config, "run");
  more.config.train.recompute = "on";
  more.config.train.checkpoint_every = 3;
  more.config.train.keep_checkpoints = 5;
  more.config.train.validate_every = 5;
  more.stop_at = 4;
  train(more, observer);
  EXPECT_TRUE(warnings.empty());
  more.config.train.steps = 14;
  more.stop_at.reset();
  EXPECT_EQ(train(more, observer).step, 14);
  ASSERT_EQ(warnings.size(), 1u);
  EXPECT_NE(warnings[0].find("train.steps 12 there, 14 here"), std::string::npos);
}

TEST_F(Train, AResumedRunKeepsItsMicroBatch) {
  Config config = small_config();
  TrainOptions open = options(config, "run");
  config.train.micro_batch = 2;
  TrainOptions first = options(config, "run");
  first.stop_at = 5;
  train(first, {});
  std::vector<std::string> warnings;
  std::vector<std::int64_t> planned;
  TrainObserver observer;
  observer.on_plan = [&](const MemoryPlan& p) { planned.push_back(p.micro_batch); };
  observer.on_warning = [&](const std::string& line) { warnings.push_back(line); };
  open.stop_at = 8;
  train(open, observer);
  open.stop_at.reset();
  open.dry_run = true;
  train(open, observer);
  open.dry_run = false;
  const TrainResult end = train(open, observer);
  EXPECT_EQ(planned, (std::vector<std::int64_t>{2, 2, 2}));
  EXPECT_TRUE(warnings.empty());
  const TrainResult through = train(options(config, "through"), observer);
  EXPECT_TRUE(same_bits(tensors(end.checkpoint, config), tensors(through.checkpoint, config)));

  open.run = run("whole");
  open.stop_at = 5;
  train(open, observer);
  EXPECT_EQ(planned.back(), 4);
  EXPECT_EQ(parse_config(read_file(run("whole") / "config.toml"), "").train.micro_batch, 4);
  config.train.micro_batch = 1;
  train(options(config, "whole"), observer);
  ASSERT_EQ(warnings.size(), 1u);
  EXPECT_NE(warnings[0].find("train.micro_batch 4 there, 1 here"), std::string::npos);
}

TEST_F(Train, NeverLeavesAnExistingRunUntouched) {
  const Config config = small_config();
  const TrainResult first = train(options(config, "run"), {});
  const auto before = fs::last_write_time(run("run"));
  TrainOptions again = options(config, "run");
  again.resume = Resume::never;
  error_of(again, Fault::invalid_argument);
  EXPECT_EQ(fs::last_write_time(run("run")), before);
  EXPECT_FALSE(verify_checkpoint(first.checkpoint).has_value());
}

TEST_F(Train, OneProcessARunFolder) {
  fs::create_directories(run("run"));
  const RunLock lock(run("run"));
  EXPECT_NE(error_of(options(small_config(), "run"), Fault::invalid_argument).find("in use"),
            std::string::npos);
}

TEST_F(Train, DryRunPlansAndWritesNothing) {
  TrainOptions dry = options(small_config(), "run");
  dry.dry_run = true;
  std::int64_t planned = 0;
  TrainObserver observer;
  observer.on_plan = [&](const MemoryPlan& p) { planned = p.total(); };
  train(dry, observer);
  EXPECT_GT(planned, 0);
  EXPECT_FALSE(fs::exists(run("run")));
}

TEST_F(Train, RefusesDataThatIsTooShortBeforeItMakesAFolder) {
  Config config = small_config();
  config.model.context = 4096;
  error_of(options(config, "run"), Fault::invalid_argument);
  TrainOptions missing = options(small_config(), "run");
  missing.data = folder_ / "absent";
  error_of(missing, Fault::invalid_argument);
  EXPECT_FALSE(fs::exists(run("run")));
}

TEST_F(Train, DivergenceStopsAndSavesNothingNonFinite) {
  Config config = small_config();
  config.train.checkpoint_every = 1;
  config.train.lr = 1e37;
  config.train.warmup = 0;
  const std::string message = error_of(options(config, "wild"), Fault::numerics);
  EXPECT_EQ(message.find("train: "), 0u) << message;
  for (const auto& one : list_checkpoints(run("wild"))) {
    EXPECT_FALSE(verify_checkpoint(one.folder).has_value());
    for (const float value : tensors(one.folder, config)) ASSERT_TRUE(std::isfinite(value));
  }
}

}  // namespace
}  // namespace longstride
