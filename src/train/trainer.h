// The loop of training over one run folder: steps, validation, checkpoints, log.
#pragma once

#include <chrono>
#include <cstdint>
#include <filesystem>
#include <memory>
#include <optional>
#include <string>

#include "data/dataset.h"
#include "longstride/train.h"
#include "model/parameters.h"
#include "model/run_state.h"
#include "train/engine.h"
#include "train/metrics_log.h"
#include "train/run_lock.h"
#include "train/train_state.h"

namespace longstride {

class Trainer {
 public:
  // Locks the run folder and takes up its newest good checkpoint, or begins. `plan` fits; the
  // options name the device ("cpu" or "cuda") of the engine, and the precision.
  Trainer(const TrainOptions& options, const TrainObserver& observer, const Dataset& data,
          const ParameterLayout& layout, const MemoryPlan& plan, EngineMaker make_engine);

  TrainResult run();

 private:
  void resume();
  void refuse_small_disk() const;
  std::int64_t next_stop() const;  // the first step that nothing may be started behind
  StepReport step();
  void validate();
  void save();
  void rotate() const;
  void clear_leftovers() const;  // of processes that were killed
  bool stop_wanted() const;
  bool due(std::int64_t every) const { return every > 0 && state_.step % every == 0; }
  TrainResult result(bool stopped) const;
  void warn(const std::string& line) const;

  const TrainOptions& options_;
  const Config& config_;
  const TrainObserver& observer_;
  const Dataset& data_;
  const ParameterLayout& layout_;
  const MemoryPlan& plan_;
  Span valid_;  // what is scored, at most validate_symbols
  RunLock lock_;
  TrainState state_;
  RunState about_;                     // as of state_.step
  std::filesystem::path checkpoint_;   // newest one
  std::int64_t checkpoint_step_ = -1;  // its step
  EngineMaker make_engine_;
  std::unique_ptr<Engine> engine_;
  std::int64_t submitted_ = 0;  // steps done or under way
  bool stopping_ = false;       // no further step is started
  std::optional<MetricsLog> log_;
  double flops_a_step_ = 0;
  std::int64_t first_step_ = 0;  // where this process began, and when: for the ETA
  std::chrono::steady_clock::time_point began_;
};

}  // namespace longstride
