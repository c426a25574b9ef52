#include "train/trainer.h"

#include <algorithm>
#include <chrono>
#include <cmath>

#include "files/checkpoint.h"
#include "files/files.h"
#include "longstride/error.h"
#include "ops/linear/linear.h"
#include "ops/linear/peak.h"
#include "train/checkpoint_state.h"
#include "train/flops.h"
#include "train/memory.h"

namespace longstride {

namespace {

// What one validation scores.
Span scored_span(const Dataset& data, const TrainConfig& train) {
  Span valid = data.split("valid");
  valid.end = std::min(valid.end, valid.begin + train.validate_symbols);
  return valid;
}

// Makes the folder, for the lock to lie in.
const std::filesystem::path& made(const std::filesystem::path& run) {
  make_directories(run);
  return run;
}

}  // namespace

Trainer::Trainer(const TrainOptions& options, const TrainObserver& observer, const Dataset& data,
                 const ParameterLayout& layout, const MemoryPlan& plan)
    : options_(options),
      config_(options.config),
      observer_(observer),
      data_(data),
      layout_(layout),
      valid_(scored_span(data, config_.train)),
      lock_(made(options.run)),
      state_(config_, layout),
      stepper_(config_, layout, plan.recompute, data.data(), data.split("train")) {
  about_.seed = config_.train.seed;
  about_.data = data.fingerprint();
  resume();
  about_.config = to_toml(config_);
}

void Trainer::resume() {
  // First, since it may rename a checkpoint back whose replacement was cut short.
  remove_stale_temporaries(options_.run);
  const auto newest =
      newest_checkpoint(options_.run, [this](const std::string& line) { warn(line); });
  if (!newest) {
    if (!list_checkpoints(options_.run).empty())
      throw invalid_argument("train: no checkpoint of ", options_.run.string(),
                             " is good, want another run folder");
    return;
  }
  const RunState saved = read_run_state(newest->folder);
  if (saved.data != about_.data)
    throw invalid_argument("train: ", options_.run.string(),
                           " was started with other data: ", saved.data, " there, ", about_.data,
                           " here");
  if (const auto line = check_same_config(config_, saved, options_.run); !line.empty()) warn(line);
  load_checkpoint(newest->folder, layout_, saved, state_);
  about_ = saved;
  checkpoint_ = newest->folder;
  checkpoint_step_ = saved.step;
  if (observer_.on_resume) observer_.on_resume(saved.step, newest->folder);
}

double Trainer::measure_peak() const {
  if (config_.train.precision != "bf16") return ops::measure_peak_flops();
  if (!ops::bf16_is_native())
    warn(
        "train: this processor has no bf16 instructions; train.precision=bf16 saves memory, not "
        "time");
  return ops::measure_peak_bf16_flops();
}

TrainResult Trainer::run() {
  const std::int64_t steps = config_.train.steps;
  const std::int64_t stop_at = options_.stop_at.value_or(steps);
  if (state_.step >= std::min(steps, stop_at)) return result(state_.step < steps);
  clear_leftovers();
  refuse_small_disk();
  write_file_atomically(options_.run / "config.toml", about_.config);
  log_.emplace(options_.run, state_.step + 1, about_.metrics_bytes, observer_.on_warning);
  flops_a_step_ = training_flops(config_.model, layout_) *
                  static_cast<double>(config_.train.batch * config_.model.context);
  peak_flops_ = measure_peak();
  first_step_ = state_.step;
  began_ = std::chrono::steady_clock::now();

  for (;;) {
    const StepReport report = step();
    log_->add(report);
    if (observer_.on_step) observer_.on_step(report);
    const bool last = state_.step == steps;
    const auto best_before = about_.best ? about_.best->step : -1;
    if (due(config_.train.validate_every) || (last && config_.train.validate_every > 0)) validate();
    const bool improved = about_.best && about_.best->step != best_before;
    const bool stop = !last && (state_.step >= stop_at || stop_wanted());
    if (last || stop || improved || due(config_.train.checkpoint_every)) save();
    if (last || stop) return result(stop);
  }
}

void Trainer::refuse_small_disk() const {
  const std::int64_t want = 2 * checkpoint_bytes(config_, layout_);
  if (const std::int64_t have = free_bytes(options_.run); have < want)
    throw environment_error("train: ", have, " bytes free where ", options_.run.string(),
                            " lies, want ", want, " (two checkpoints)");
}

StepReport Trainer::step() {
  const auto start = std::chrono::steady_clock::now();
  const StepOutcome outcome = stepper_.run(state_);
  const std::chrono::duration<double> took = std::chrono::steady_clock::now() - start;
  about_.step = state_.step;
  about_.skipped = state_.skipped;
  about_.skipped_in_a_row = state_.skipped_in_a_row;
  about_.bits = outcome.bits;

  const std::int64_t symbols = config_.train.batch * config_.model.context;
  StepReport report;
  report.step = state_.step;
  report.steps = config_.train.steps;
  report.symbols = state_.step * symbols;
  report.bits = outcome.bits;
  report.lr = outcome.lr;
  report.grad_norm = outcome.grad_norm;
  report.seconds = took.count();
  report.symbols_per_second = static_cast<double>(symbols) / took.count();
  report.flops_per_second = flops_a_step_ / took.count();
  report.peak_flops_per_second = peak_flops_;
  report.memory = resident_memory();
  // Validation and checkpoints included, as they came so far.
  const std::chrono::duration<double> so_far = std::chrono::steady_clock::now() - began_;
  report.eta_seconds = so_far.count() / static_cast<double>(state_.step - first_step_) *
                       static_cast<double>(report.steps - report.step);
  report.skipped = outcome.skipped;
  return report;
}

void Trainer::validate() {
  if (!scorer_) scorer_ = std::make_unique<Scorer>(config_.model);
  ValidationReport report;
  report.step = state_.step;
  report.symbols = valid_.size();
  report.bits = mean_bits(*scorer_, state_.evaluated(), data_.data() + valid_.begin, valid_.size(),
                          config_.model.context);
  report.best = std::isfinite(report.bits) && (!about_.best || report.bits < about_.best->bits);
  if (report.best) about_.best = BestValidation{state_.step, report.bits};
  report.best_bits = about_.best ? about_.best->bits : report.bits;
  log_->add(report);
  if (observer_.on_validation) observer_.on_validation(report);
}

void Trainer::save() {
  about_.metrics_bytes = log_->sync();
  checkpoint_ = save_checkpoint(options_.run, config_, layout_, state_, about_);
  checkpoint_step_ = state_.step;
  rotate();
  if (observer_.on_checkpoint) observer_.on_checkpoint(state_.step, checkpoint_);
}

void Trainer::rotate() const {
  std::vector<std::int64_t> protect;
  if (about_.best) protect.push_back(about_.best->step);
  rotate_checkpoints(options_.run, config_.train.keep_checkpoints, protect);
}

void Trainer::clear_leftovers() const {
  remove_abandoned_files(options_.run);
  if (checkpoint_step_ >= 0) rotate();
}

bool Trainer::stop_wanted() const { return observer_.stop_requested && observer_.stop_requested(); }

TrainResult Trainer::result(bool stopped) const {
  TrainResult out;
  out.step = state_.step;
  out.stopped = stopped;
  out.bits = about_.bits;
  out.best_validation_bits = about_.best ? about_.best->bits : 0;
  out.checkpoint = checkpoint_;
  return out;
}

void Trainer::warn(const std::string& line) const {
  if (observer_.on_warning) observer_.on_warning(line);
}

}  // namespace longstride
