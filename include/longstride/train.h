// Training. The library prints nothing: everything a person or a machine may want to see arrives in
// the observer.
#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <optional>
#include <string>

#include "longstride/config.h"
#include "longstride/recompute.h"

namespace longstride {

enum class Resume { automatic, never };  // never: refuse a run folder that holds checkpoints

struct TrainOptions {
  Config config;
  std::filesystem::path data;
  std::filesystem::path run;
  Resume resume = Resume::automatic;
  std::optional<std::int64_t>
      stop_at;                 // stop (and save) after this step, without changing the schedule
  bool dry_run = false;        // plan only
  bool save = true;            // false: no checkpoint at the end, for a run that is only measured
  std::string device = "cpu";  // | "cuda" | "auto": the GPU where there is one that will do
};

// All of it where the steps are made: on the GPU, the host holds a copy of the state besides.
struct MemoryPlan {
  std::string device;            // "cpu", or the name of the card
  std::string precision;         // of the steps: train.precision, "auto" resolved
  std::int64_t micro_batch = 0;  // sequences at once, chosen where train.micro_batch is 0
  std::int64_t parameters = 0;
  std::int64_t weights = 0, gradients = 0, optimizer = 0, averages = 0;  // bytes
  std::int64_t kept = 0, scratch = 0;                                    // bytes of activations
  Recompute recompute = {};
  double recompute_time = 0;   // what that adds to a step without, as a share of it: an estimate
  std::int64_t available = 0;  // bytes of memory free there
  std::int64_t total() const { return weights + gradients + optimizer + averages + kept + scratch; }
};

struct StepReport {
  std::int64_t step = 0, steps = 0;
  std::int64_t symbols = 0;  // seen since step 0
  double bits = 0;           // bits per symbol of this step's batch
  double lr = 0, grad_norm = 0;
  double seconds = 0;  // of this step; on the GPU since the one before was done
  double symbols_per_second = 0;
  double flops_per_second = 0;       // needed ones (recomputation not counted)
  double peak_flops_per_second = 0;  // of matrix products in train.precision, measured at the start
  std::int64_t memory = 0;           // resident bytes of the process; on the GPU what it took there
  double eta_seconds = 0;
  bool skipped = false;  // update left out: non-finite gradient
};

struct ValidationReport {
  std::int64_t step = 0, symbols = 0;
  double bits = 0, best_bits = 0;
  bool best = false;
};

struct TrainObserver {
  std::function<void(const MemoryPlan&)> on_plan;
  std::function<void(std::int64_t step, const std::filesystem::path& folder)> on_resume;
  std::function<void(const StepReport&)> on_step;
  std::function<void(const ValidationReport&)> on_validation;
  std::function<void(std::int64_t step, const std::filesystem::path& folder)> on_checkpoint;
  std::function<void(const std::string&)> on_warning;
  std::function<bool()> stop_requested;  // asked after each step: true = save, stop, resumable
};

struct TrainResult {
  std::int64_t step = 0;
  bool stopped = false;  // before the last step, on request
  double bits = 0;       // of the last step
  double best_validation_bits = 0;
  std::filesystem::path checkpoint;  // the last one written
};

// Creates or resumes RUN: config.toml, metrics.jsonl, events.out.tfevents.*, checkpoints/ (newest
// ones and best). Exact: killed anywhere and started again, the run ends in the same bits as one
// that ran through. Throws Error; what was in RUN stays loadable.
TrainResult train(const TrainOptions& options, const TrainObserver& observer);

}  // namespace longstride
