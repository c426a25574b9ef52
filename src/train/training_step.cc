#include "train/training_step.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <numbers>

#include "longstride/error.h"
#include "train/memory.h"
#include "train/schedule.h"

namespace longstride {

namespace {

constexpr std::int64_t kMostSkippedInARow = 10;

bool finite(const float* x, std::int64_t n) {
  return std::all_of(x, x + n, [](float value) { return std::isfinite(value); });
}

}  // namespace

TrainState::TrainState(const Config& config, const ParameterLayout& layout)
    : weights(layout.extent), m(layout.extent), v(layout.extent) {
  initialise(layout, config.train.seed, weights.vector());
  if (config.train.ema == 0) return;
  average = Buffer<float>(layout.extent);
  std::memcpy(average.data(), weights.data(),
              static_cast<std::size_t>(layout.extent) * sizeof(float));
}

TrainingStep::TrainingStep(const Config& config, const ParameterLayout& layout, bool recompute,
                           const std::uint8_t* data, Span train)
    : config_(config),
      layout_(layout),
      data_(data),
      order_(train, config.model.context, config.train.seed),
      pass_(config.model, micro_batch(config.train), recompute, config.train.precision == "bf16"),
      gradients_(layout.extent),
      tokens_(static_cast<std::size_t>(micro_batch(config.train) * config.model.context)) {
  for (const Parameter& t : layout.tensors)
    if (t.decays()) decayed_.push_back({t.offset, t.offset + t.size});
}

double TrainingStep::accumulate(const TrainState& state) {
  const std::int64_t batch = config_.train.batch, micro = micro_batch(config_.train);
  const std::int64_t context = config_.model.context;
  const double scale = 1.0 / (static_cast<double>(batch) * static_cast<double>(context));
  std::fill_n(gradients_.data(), gradients_.size(), 0.0f);
  double nats = 0;
  for (std::int64_t first = 0; first < batch; first += micro) {
    for (std::int64_t b = 0; b < micro; ++b) {
      const std::uint8_t* window = data_ + order_.begin(state.step * batch + first + b);
      std::copy_n(window, context, tokens_.data() + b * context);
    }
    const PassKey key{config_.train.seed, static_cast<std::uint64_t>(state.step), first};
    nats += pass_.run(state.weights.vector(), tokens_.data(), scale, key, gradients_.vector());
  }
  return nats;
}

StepOutcome TrainingStep::run(TrainState& state) {
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
  return outcome;
}

void TrainingStep::refuse_or_skip(TrainState& state, const StepOutcome& outcome) const {
  const bool stop = config_.train.on_nonfinite != "skip";
  if (stop || state.skipped_in_a_row == kMostSkippedInARow) {
    const std::string tensor = first_nonfinite(layout_, gradients_.vector());
    throw Error(
        Fault::numerics,
        text("train: step ", state.step + 1, ": loss is ", outcome.bits, " bits, gradient norm ",
             outcome.grad_norm, tensor.empty() ? "" : ", first non-finite gradient in " + tensor,
             stop ? "" : text(", after ", kMostSkippedInARow, " skipped updates"),
             "; no update made"));
  }
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

std::string first_nonfinite(const ParameterLayout& layout, Vector<const float> flat) {
  const auto bad =
      std::find_if(layout.tensors.begin(), layout.tensors.end(),
                   [&](const Parameter& t) { return !finite(flat.data + t.offset, t.size); });
  return bad == layout.tensors.end() ? "" : bad->name;
}

}  // namespace longstride
