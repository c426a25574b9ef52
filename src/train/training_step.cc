#include "train/training_step.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <numbers>

#include "train/schedule.h"

namespace longstride {

std::vector<ops::DecayRange> decayed_ranges(const ParameterLayout& layout) {
  std::vector<ops::DecayRange> ranges;
  for (const Parameter& t : layout.tensors)
    if (t.decays()) ranges.push_back({t.offset, t.offset + t.size});
  return ranges;
}

TrainingStep::TrainingStep(const Config& config, const ParameterLayout& layout, bool recompute,
                           const std::uint8_t* data, Span train)
    : config_(config),
      layout_(layout),
      batches_(config, data, train),
      pass_(config.model, config.train.micro_batch, recompute, config.train.precision == "bf16"),
      decayed_(decayed_ranges(layout)),
      gradients_(layout.extent),
      tokens_(static_cast<std::size_t>(config.train.micro_batch * config.model.context)) {}

double TrainingStep::accumulate(const TrainState& state) {
  const std::int64_t batch = config_.train.batch, micro = config_.train.micro_batch;
  const std::int64_t context = config_.model.context;
  const double scale = 1.0 / (static_cast<double>(batch) * static_cast<double>(context));
  std::fill_n(gradients_.data(), gradients_.size(), 0.0f);
  double nats = 0;
  for (std::int64_t first = 0; first < batch; first += micro) {
    batches_.gather(state.step, first, micro, tokens_.data());
    const PassKey key{config_.train.seed, static_cast<std::uint64_t>(state.step), first};
    nats += pass_.run(state.weights.vector(), tokens_.data(), scale, key, gradients_.vector());
  }
  return nats;
}

StepOutcome TrainingStep::run(TrainState& state) {
  const auto start = std::chrono::steady_clock::now();
  const double symbols =
      static_cast<double>(config_.train.batch) * static_cast<double>(config_.model.context);
  StepOutcome outcome;
  outcome.lr = learning_rate(config_.train, state.step);
  outcome.bits = accumulate(state) / symbols / std::numbers::ln2;
  outcome.grad_norm = ops::global_norm(Vector<const float>(gradients_.vector()));
  outcome.skipped = !std::isfinite(outcome.bits) || !std::isfinite(outcome.grad_norm);
  if (outcome.skipped)
    refuse_or_skip(state, outcome);
  else
    update(state, outcome);
  ++state.step;
  outcome.seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  return outcome;
}

void TrainingStep::refuse_or_skip(TrainState& state, const StepOutcome& outcome) const {
  const bool stop = config_.train.on_nonfinite != "skip";
  if (stop || state.skipped_in_a_row == kMostSkippedInARow)
    throw nonfinite_step(state.step + 1, outcome, first_nonfinite(layout_, gradients_.vector()),
                         !stop);
  ++state.skipped;
  ++state.skipped_in_a_row;
}

void TrainingStep::update(TrainState& state, const StepOutcome& outcome) const {
  const TrainConfig& t = config_.train;
  ops::AdamW<float> op;
  op.weights = state.weights.vector();
  op.m = state.m.vector();
  op.v = state.v.vector();
  op.average = state.average.vector();
  op.grad = gradients_.vector();
  op.decayed = &decayed_;
  op.lr = outcome.lr;
  op.beta1 = t.beta1;
  op.beta2 = t.beta2;
  op.eps = t.eps;
  op.decay = t.weight_decay;
  op.ema = t.ema;
  op.grad_scale = t.clip > 0 && outcome.grad_norm > t.clip ? t.clip / outcome.grad_norm : 1;
  op.step = state.step + 1 - state.skipped;  // updates made, this one included
  ops::adamw(op);
  state.skipped_in_a_row = 0;
}

}  // namespace longstride
