#include "train/trainer.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <utility>

#include "files/checkpoint.h"
#include "files/files.h"
#include "longstride/error.h"
#include "train/checkpoint_state.h"
#include "train/flops.h"

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
                 const ParameterLayout& layout, const MemoryPlan& plan, EngineMaker make_engine)
    : options_(options),
      config_(options.config),
      observer_(observer),
      data_(data),
      layout_(layout),
      plan_(plan),
      valid_(scored_span(data, config_.train)),
      lock_(made(options.run)),
      state_(config_, layout),
      make_engine_(std::move(make_engine)) {
  about_.seed = config_.train.seed;
  about_.data = data.fingerprint();
  resume();
  about_.config = to_toml(config_);
  about_.device = options.device;
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
  if (const auto line = check_same_config(config_, options_.device, saved, options_.run);
      !line.empty())
    warn(line);
  load_checkpoint(newest->folder, layout_, saved, state_);
  about_ = saved;
  checkpoint_ = newest->folder;
  checkpoint_step_ = saved.step;
  if (observer_.on_resume) observer_.on_resume(saved.step, newest->folder);
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
  const EngineParts parts{config_, layout_, plan_,
                          data_,   state_,  [this](const std::string& line) { warn(line); }};
  engine_ = make_engine_(parts);
  first_step_ = submitted_ = state_.step;
  began_ = std::chrono::steady_clock::now();

  for (;;) {
    const StepReport report = step();
    log_->add(report);
    if (observer_.on_step) observer_.on_step(report);
    stopping_ = stopping_ || stop_wanted();
    if (submitted_ > state_.step) continue;  // nothing is due before next_stop()
    const bool last = state_.step == steps;
    const auto best_before = about_.best ? about_.best->step : -1;
    if (due(config_.train.validate_every) || (last && config_.train.validate_every > 0)) validate();
    const bool improved = about_.best && about_.best->step != best_before;
    const bool stop = !last && (state_.step >= stop_at || stopping_);
    const bool ends = (last || stop) && options_.save;
    if (ends || improved || due(config_.train.checkpoint_every)) save();
    if (last || stop) return result(stop);
  }
}

void Trainer::refuse_small_disk() const {
  const std::int64_t want = 2 * checkpoint_bytes(config_, layout_);
  if (const std::int64_t have = free_bytes(options_.run); have < want)
    throw environment_error("train: ", have, " bytes free where ", options_.run.string(),
                            " lies, want ", want, " (two checkpoints)");
}

std::int64_t Trainer::next_stop() const {
  std::int64_t stop = std::min(config_.train.steps, options_.stop_at.value_or(config_.train.steps));
  for (const std::int64_t every : {config_.train.validate_every, config_.train.checkpoint_every})
    if (every > 0) stop = std::min(stop, (state_.step / every + 1) * every);
  return stop;
}

StepReport Trainer::step() {
  const std::int64_t most = stopping_ ? state_.step : next_stop();
  for (; submitted_ < most && submitted_ - state_.step < engine_->depth(); ++submitted_)
    engine_->submit();
  const StepOutcome outcome = engine_->collect();
  about_.step = state_.step;
  about_.skipped = state_.skipped;
  about_.skipped_in_a_row = state_.skipped_in_a_row;
  about_.bits = outcome.bits;
  about_.loss_scale = state_.loss_scale;

  const std::int64_t symbols = config_.train.batch * config_.model.context;
  StepReport report;
  report.step = state_.step;
  report.steps = config_.train.steps;
  report.symbols = state_.step * symbols;
  report.bits = outcome.bits;
  report.lr = outcome.lr;
  report.grad_norm = outcome.grad_norm;
  report.seconds = outcome.seconds;
  report.symbols_per_second = static_cast<double>(symbols) / outcome.seconds;
  report.flops_per_second = flops_a_step_ / outcome.seconds;
  report.peak_flops_per_second = engine_->peak_flops();
  report.memory = engine_->memory();
  // Validation and checkpoints included, as they came so far.
  const std::chrono::duration<double> so_far = std::chrono::steady_clock::now() - began_;
  report.eta_seconds = so_far.count() / static_cast<double>(state_.step - first_step_) *
                       static_cast<double>(report.steps - report.step);
  report.skipped = outcome.skipped;
  return report;
}

void Trainer::validate() {
  ValidationReport report;
  report.step = state_.step;
  report.symbols = valid_.size();
  report.bits = engine_->score(data_.data() + valid_.begin, valid_.size());
  report.best = std::isfinite(report.bits) && (!about_.best || report.bits < about_.best->bits);
  if (report.best) about_.best = BestValidation{state_.step, report.bits};
  report.best_bits = about_.best ? about_.best->bits : report.bits;
  log_->add(report);
  if (observer_.on_validation) observer_.on_validation(report);
}

void Trainer::save() {
  about_.metrics_bytes = log_->sync();
  engine_->pull();
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
