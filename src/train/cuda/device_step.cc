#include "train/cuda/device_step.h"

#include <type_traits>

#include "base/integers.h"
#include "device/timed.h"
#include "ops/linear/linear_cuda.h"
#include "tensor/bf16.h"
#include "tensor/fp16.h"
#include "train/training_step.h"

namespace longstride {

namespace {

constexpr double kFirstLossScale = 65536, kLeastLossScale = 1024;

// Weight decay by whole groups: the padding behind a tensor is zero and stays so.
std::vector<ops::DecayRange> decayed_groups(const ParameterLayout& layout) {
  constexpr std::int64_t kGroup = 16;
  std::vector<ops::DecayRange> ranges = decayed_ranges(layout);
  for (ops::DecayRange& range : ranges) range.end = ceil_div(range.end, kGroup) * kGroup;
  return ranges;
}

ops::cuda::UpdateConfig update_config(const TrainConfig& t) {
  ops::cuda::UpdateConfig config;
  config.beta1 = t.beta1;
  config.beta2 = t.beta2;
  config.eps = t.eps;
  config.decay = t.weight_decay;
  config.ema = t.ema;
  config.clip = t.clip;
  config.stop_on_nonfinite = t.on_nonfinite != "skip";
  config.most_skipped_in_a_row = kMostSkippedInARow;
  config.scales_loss = t.precision == "fp16";
  config.scale_floor = kLeastLossScale;
  return config;
}

// A state of another precision has none yet.
template <class A>
double loss_scale(double saved) {
  if (!std::is_same_v<A, fp16>) return 1;
  return saved >= kLeastLossScale ? saved : kFirstLossScale;
}

}  // namespace

DevicePassPlan pass_plan(const TrainConfig& train, const Recompute& again) {
  return {.again = again, .adds_up = train.micro_batch < train.batch};
}

template <class A>
DeviceStep<A>::DeviceStep(const Config& config, const ParameterLayout& layout,
                          const Recompute& again)
    : batch_(config.train.batch),
      micro_(config.train.micro_batch),
      context_(config.model.context),
      seed_(config.train.seed),
      weights_(layout.extent),
      m_(layout.extent),
      v_(layout.extent),
      average_(config.train.ema > 0 ? layout.extent : 0),
      tokens_(batch_ * context_),
      nats_(micro_ * context_),
      input_(1),
      state_(1),
      pass_(config.model, micro_, pass_plan(config.train, again)),
      update_(layout.extent, decayed_groups(layout), update_config(config.train)) {}

template <class A>
std::int64_t DeviceStep<A>::scratch_bytes(const Config& config, const ParameterLayout& layout) {
  const std::int64_t context = config.model.context;
  return config.train.batch * context +
         config.train.micro_batch * context * static_cast<std::int64_t>(sizeof(float)) +
         ops::cuda::Update::bytes(layout.extent) + ops::cuda::LinearContext::bytes();
}

template <class A>
void DeviceStep<A>::push(device::Stream stream, const TrainState& state) const {
  device::copy(stream, weights_.data(), state.weights.data(), weights_.bytes());
  device::copy(stream, m_.data(), state.m.data(), m_.bytes());
  device::copy(stream, v_.data(), state.v.data(), v_.bytes());
  device::copy(stream, average_.data(), state.average.data(), average_.bytes());
  ops::cuda::StepState counts;
  counts.updates = state.step - state.skipped;
  counts.skipped = state.skipped;
  counts.skipped_in_a_row = state.skipped_in_a_row;
  counts.loss_scale = loss_scale<A>(state.loss_scale);
  device::copy(stream, state_.data(), &counts, state_.bytes());
  device::synchronize(stream);
}

template <class A>
void DeviceStep<A>::pull(device::Stream stream, const TrainState& state) const {
  device::copy(stream, state.weights.data(), weights_.data(), weights_.bytes());
  device::copy(stream, state.m.data(), m_.data(), m_.bytes());
  device::copy(stream, state.v.data(), v_.data(), v_.bytes());
  device::copy(stream, state.average.data(), average_.data(), average_.bytes());
  device::synchronize(stream);
}

template <class A>
void DeviceStep<A>::pull_gradients(device::Stream stream, Vector<float> gradients) const {
  device::copy(stream, gradients.data, pass_.gradients().data, weights_.bytes());
  device::synchronize(stream);
}

template <class A>
void DeviceStep<A>::give(device::Stream stream, const std::uint8_t* tokens,
                         const ops::cuda::StepInput* input) const {
  device::copy(stream, tokens_.data(), tokens, tokens_.bytes());
  device::copy(stream, input_.data(), input, input_.bytes());
}

template <class A>
void DeviceStep<A>::take(device::Stream stream, ops::cuda::StepState* state) const {
  device::copy(stream, state, state_.data(), state_.bytes());
}

template <class A>
void DeviceStep<A>::gradients(device::Stream stream) {
  const auto scale =
      static_cast<float>(1.0 / (static_cast<double>(batch_) * static_cast<double>(context_)));
  const double* loss_scale = std::is_same_v<A, fp16> ? &state_.data()->loss_scale : nullptr;
  pass_.begin(stream, weights_.vector());
  for (std::int64_t first = 0; first < batch_; first += micro_)
    pass_.run(stream, tokens_.data() + first * context_, {seed_, &input_.data()->step, first},
              scale, loss_scale);
  pass_.end(stream);
}

template <class A>
void DeviceStep<A>::run(device::Stream stream) {
  gradients(stream);
  const device::Timed timed(stream, "update");
  update_.run(stream, weights_.vector(), m_.vector(), v_.vector(), average_.vector(),
              pass_.gradients(), pass_.nats(), input_.data(), state_.data());
}

template <class A>
void DeviceStep<A>::begin_score(device::Stream stream) {
  pass_.begin(stream, average_.size() > 0 ? average_.vector() : weights_.vector());
}

template <class A>
void DeviceStep<A>::score(device::Stream stream, const std::uint8_t* tokens, std::int64_t sequences,
                          std::int64_t length, float* nats) {
  const Vector<float> out = {nats_.data(), sequences * length};
  device::copy(stream, tokens_.data(), tokens, out.size);
  pass_.score(stream, tokens_.data(), sequences, length, out);
  device::copy(stream, nats, out.data, out.size * static_cast<std::int64_t>(sizeof(float)));
  device::synchronize(stream);
}

template class DeviceStep<float>;
template class DeviceStep<bf16>;
template class DeviceStep<fp16>;

}  // namespace longstride
