// The loop of training over one run folder: steps, validation, checkpoints, log.
#pragma once

#include <chrono>
#include <cstdint>
#include <filesystem>
#include <memory>
#include <optional>
#include <string>

#include "data/dataset.h"
#include "eval/scorer.h"
#include "longstride/train.h"
#include "model/parameters.h"
#include "model/run_state.h"
#include "train/metrics_log.h"
#include "train/run_lock.h"
#include "train/training_step.h"

namespace longstride {

class Trainer {
 public:
  // Locks the run folder and takes up its newest good checkpoint, or begins. `plan` fits.
  Trainer(const TrainOptions& options, const TrainObserver& observer, const Dataset& data,
          const ParameterLayout& layout, const MemoryPlan& plan);

  TrainResult run();

 private:
  void resume();
  void refuse_small_disk() const;
  StepReport step();
  void validate();
  void save();
  void rotate() const;
  void clear_leftovers() const;  // of processes that were killed
  bool stop_wanted() const;
  bool due(std::int64_t every) const { return every > 0 && state_.step % every == 0; }
  TrainResult result(bool stopped) const;
  double measure_peak() const;  // flops a second of matrix products, in the precision of the run
  void warn(const std::string& line) const;

  const TrainOptions& options_;
  const Config& config_;
  const TrainObserver& observer_;
  const Dataset& data_;
  const ParameterLayout& layout_;
  Span valid_;  // what is scored, at most validate_symbols
  RunLock lock_;
  TrainState state_;
  RunState about_;                     // as of state_.step
  std::filesystem::path checkpoint_;   // newest one
  std::int64_t checkpoint_step_ = -1;  // its step
  TrainingStep stepper_;
  std::unique_ptr<Scorer> scorer_;  // made at the first validation
  std::optional<MetricsLog> log_;
  double flops_a_step_ = 0, peak_flops_ = 0;
  std::int64_t first_step_ = 0;  // where this process began, and when: for the ETA
  std::chrono::steady_clock::time_point began_;
};

}  // namespace longstride
