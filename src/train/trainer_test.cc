// The loop over an engine whose steps come late, as a GPU's do.
#include "train/trainer.h"

#include <gtest/gtest.h>

#include <cstring>

#include "files/files.h"
#include "longstride/error.h"
#include "train/memory.h"
#include "train/training_fixture.h"

namespace longstride {
namespace {

// Steps are made on the CPU when they are collected; up to three are under way.
class LateEngine final : public Engine {
 public:
  explicit LateEngine(const EngineParts& parts) : inner_(make_cpu_engine(parts)) {}

  int depth() const override { return 3; }
  void submit() override {
    ++under_way_;
    EXPECT_LE(under_way_, depth());
    deepest = std::max(deepest, under_way_);
  }
  StepOutcome collect() override {
    EXPECT_GT(under_way_, 0);
    --under_way_;
    return inner_->collect();
  }
  void pull() override { EXPECT_EQ(under_way_, 0); }
  double score(const std::uint8_t* data, std::int64_t symbols) override {
    EXPECT_EQ(under_way_, 0);
    return inner_->score(data, symbols);
  }
  double peak_flops() const override { return 1; }
  std::int64_t memory() const override { return 1; }

  static inline int deepest = 0;

 private:
  std::unique_ptr<Engine> inner_;
  int under_way_ = 0;
};

// Its ninth step fails as a card does.
class FailingEngine final : public Engine {
 public:
  explicit FailingEngine(const EngineParts& parts)
      : state_(parts.state), inner_(make_cpu_engine(parts)) {}

  int depth() const override { return 2; }
  void submit() override {}
  StepOutcome collect() override {
    if (state_.step == 8) throw Error(Fault::device, "cuda: linear 1x2x3: it broke");
    return inner_->collect();
  }
  void pull() override {}
  double score(const std::uint8_t*, std::int64_t) override { return 1; }
  double peak_flops() const override { return 1; }
  std::int64_t memory() const override { return 1; }

 private:
  TrainState& state_;
  std::unique_ptr<Engine> inner_;
};

class TrainerTest : public test::TrainingFixture {
 protected:
  template <class AnEngine = LateEngine>
  TrainResult run_late(TrainOptions options, const TrainObserver& observer) const {
    options.config = test::at_once(options.config);
    const Dataset bytes(options.data);
    const ParameterLayout layout(options.config.model);
    const MemoryPlan plan = plan_memory(options.config, layout, cpu_memory(available_memory()));
    Trainer trainer(options, observer, bytes, layout, plan,
                    [](const EngineParts& parts) { return std::make_unique<AnEngine>(parts); });
    return trainer.run();
  }
};

TEST_F(TrainerTest, LateStepsEndInTheSameBits) {
  Config config = test::small_config();
  config.train.precision = "f32";
  config.train.steps = 40;
  config.train.validate_every = 7;
  config.train.checkpoint_every = 9;
  const TrainResult want = train(options(config, "plain"), {});
  std::vector<std::int64_t> steps;
  TrainObserver observer;
  observer.on_step = [&](const StepReport& r) { steps.push_back(r.step); };
  LateEngine::deepest = 0;
  TrainOptions late = options(config, "late");
  late.stop_at = 25;
  EXPECT_TRUE(run_late(late, observer).stopped);
  late.stop_at.reset();
  const TrainResult got = run_late(late, observer);
  EXPECT_EQ(LateEngine::deepest, 3);
  ASSERT_EQ(steps.size(), 40u);
  for (std::size_t s = 0; s < steps.size(); ++s)
    EXPECT_EQ(steps[s], static_cast<std::int64_t>(s) + 1);
  EXPECT_EQ(got.bits, want.bits);
  EXPECT_EQ(got.best_validation_bits, want.best_validation_bits);
  const auto a = tensors(got.checkpoint, config), b = tensors(want.checkpoint, config);
  ASSERT_EQ(a.size(), b.size());
  EXPECT_EQ(std::memcmp(a.data(), b.data(), a.size() * sizeof(float)), 0);
}

TEST_F(TrainerTest, AStopCollectsWhatIsUnderWayAndSaves) {
  Config config = test::small_config();
  config.train.steps = 1000;
  std::int64_t asked = 0, last = 0;
  TrainObserver observer;
  observer.on_step = [&](const StepReport& r) { last = r.step; };
  observer.stop_requested = [&] { return ++asked >= 5; };
  const TrainResult result = run_late(options(config, "run"), observer);
  EXPECT_TRUE(result.stopped);
  EXPECT_EQ(result.step, 7);  // the fifth, and two more that were under way
  EXPECT_EQ(last, 7);
  EXPECT_EQ(parse_run_state(read_file(result.checkpoint / "state.json"), "").step, 7);
}

TEST_F(TrainerTest, AFaultOfTheDeviceLeavesTheLastCheckpoint) {
  Config config = test::small_config();
  config.train.precision = "f32";
  config.train.checkpoint_every = 5;
  const TrainResult want = train(options(config, "plain"), {});
  try {
    run_late<FailingEngine>(options(config, "broken"), {});
    ADD_FAILURE() << "no error";
  } catch (const Error& e) {
    EXPECT_EQ(exit_code(e.fault), 5);
  }
  const auto newest = newest_checkpoint(run("broken"), {});
  ASSERT_TRUE(newest.has_value());
  EXPECT_EQ(newest->step, 5);
  const TrainResult got = train(options(config, "broken"), {});
  const auto a = tensors(got.checkpoint, config), b = tensors(want.checkpoint, config);
  ASSERT_EQ(a.size(), b.size());
  EXPECT_EQ(std::memcmp(a.data(), b.data(), a.size() * sizeof(float)), 0);
}

}  // namespace
}  // namespace longstride
