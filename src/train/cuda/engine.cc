// Training on the GPU. The host prepares the next step (its bytes, its learning rate) in pinned
// memory and puts copies, one graph launch and the copy of the outcome on a stream, while the step
// before is still running; it waits only for outcomes.
#include "train/engine.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <numbers>

#include "base/profile.h"
#include "device/cuda.h"
#include "device/device.h"
#include "device/timed.h"
#include "eval/windows.h"
#include "tensor/bf16.h"
#include "tensor/fp16.h"
#include "train/batches.h"
#include "train/cuda/device_step.h"
#include "train/cuda/peak.h"
#include "train/schedule.h"

namespace longstride {

namespace {

constexpr int kDepth = 2;  // steps under way
// Of these and of the step before, whose end is when the time of the next one begins.
constexpr std::size_t kSlots = kDepth + 1;
constexpr std::int64_t kSettled = 3;  // steps after which nothing more is allocated

std::int64_t free_memory() { return device::devices().at(0).free; }

template <class A>
double peak_of_process() {
  static const double peak = measure_device_peak<A>();
  return peak;
}

// Waits for every kernel while it lives, so that a fault names its kernel.
class Synchronous {
 public:
  Synchronous() : before_(device::synchronous()) { device::set_synchronous(true); }
  ~Synchronous() { device::set_synchronous(before_); }
  Synchronous(const Synchronous&) = delete;

 private:
  bool before_;
};

template <class A>
class CudaEngine final : public Engine {
 public:
  explicit CudaEngine(const EngineParts& parts);

  int depth() const override { return kDepth; }
  void submit() override;
  StepOutcome collect() override;
  void pull() override {
    told("after step", state_.step, [&] { step_.pull(stream(), state_); });
  }
  double score(const std::uint8_t* data, std::int64_t symbols) override;
  double peak_flops() const override { return peak_flops_; }
  std::int64_t memory() const override { return memory_; }

 private:
  struct Slot {
    device::PinnedBuffer<std::uint8_t> tokens;
    device::PinnedBuffer<ops::cuda::StepInput> input{1};
    device::PinnedBuffer<ops::cuda::StepState> state{1};
    device::Event start, done;
    bool first = false;  // none was under way when it was started
  };

  device::Stream stream() const { return stream_.stream; }
  Slot& slot(std::int64_t step) { return slots_[static_cast<std::size_t>(step) % kSlots]; }
  void prepare(Slot& slot, std::int64_t step) const;
  void put_step();
  template <class Body>
  void told(const char* when, std::int64_t step, const Body& body) const;
  std::string blame();

  const Config& config_;
  const ParameterLayout& layout_;
  TrainState& state_;
  Batches batches_;
  double peak_flops_;  // measured before memory is taken
  std::int64_t free_before_;
  device::StreamOwner stream_;
  DeviceStep<A> step_;
  std::array<Slot, kSlots> slots_;
  device::PinnedBuffer<float> nats_;  // [micro_batch, context], of score()
  device::Graph graph_;
  std::int64_t made_ = 0, under_way_ = 0, memory_ = 0;
};

template <class A>
CudaEngine<A>::CudaEngine(const EngineParts& parts)
    : config_(parts.config),
      layout_(parts.layout),
      state_(parts.state),
      batches_(config_, parts.data.data(), parts.data.split("train")),
      peak_flops_(peak_of_process<A>()),
      free_before_(free_memory()),
      step_(config_, layout_, parts.plan.recompute),
      nats_(config_.train.micro_batch * config_.model.context) {
  for (Slot& s : slots_)
    s.tokens = device::PinnedBuffer<std::uint8_t>(config_.train.batch * config_.model.context);
  step_.push(stream(), state_);
}

template <class A>
void CudaEngine<A>::prepare(Slot& slot, std::int64_t step) const {
  batches_.gather(step, 0, config_.train.batch, slot.tokens.data());
  *slot.input.data() = {step, learning_rate(config_.train, step)};
  step_.give(stream(), slot.tokens.data(), slot.input.data());
}

// The first step waits for each of its kernels. With LONGSTRIDE_CUDA_SYNC and while times of parts
// are taken there is no graph.
template <class A>
void CudaEngine<A>::put_step() {
  if (device::synchronous() || profiling()) {
    step_.run(stream());
  } else if (made_ == 0) {
    const Synchronous waiting;
    step_.run(stream());
  } else {
    if (graph_.empty()) graph_.capture(stream(), [&] { step_.run(stream()); });
    graph_.launch(stream());
  }
  ++made_;
}

// A fault of the device comes with the first call behind it, whatever that is: told with the step,
// and how to learn the kernel where it was not waited for.
template <class A>
template <class Body>
void CudaEngine<A>::told(const char* when, std::int64_t step, const Body& body) const {
  const bool named = device::synchronous() || made_ == 0;
  try {
    body();
  } catch (const Error& e) {
    if (e.fault != Fault::device) throw;
    throw Error(e.fault, text("train: ", when, " ", step, ": ", e.what(),
                              named ? "" : "; LONGSTRIDE_CUDA_SYNC=1 names the kernel"));
  }
}

template <class A>
void CudaEngine<A>::submit() {
  const std::int64_t step = state_.step + under_way_;
  Slot& s = slot(step);
  told("step", state_.step + 1, [&] {
    s.first = under_way_ == 0;
    if (s.first) s.start.record(stream());
    prepare(s, step);
    put_step();
    step_.take(stream(), s.state.data());
    s.done.record(stream());
  });
  ++under_way_;
}

template <class A>
StepOutcome CudaEngine<A>::collect() {
  const Slot& s = slot(state_.step);
  told("step", state_.step + 1, [&] { s.done.wait(); });
  const ops::cuda::StepState& after = *s.state.data();
  const double symbols =
      static_cast<double>(config_.train.batch) * static_cast<double>(config_.model.context);
  StepOutcome outcome;
  outcome.bits = after.nats / symbols / std::numbers::ln2;
  outcome.grad_norm = after.norm;
  outcome.lr = s.input.data()->lr;
  outcome.skipped = after.was_skipped != 0;
  outcome.seconds = s.done.seconds_since(s.first ? s.start : slot(state_.step + kSlots - 1).done);
  if (after.halted != 0)
    throw nonfinite_step(state_.step + 1, outcome, blame(), config_.train.on_nonfinite == "skip");
  --under_way_;
  ++state_.step;
  state_.skipped = after.skipped;
  state_.skipped_in_a_row = after.skipped_in_a_row;
  state_.loss_scale = after.loss_scale;
  if (made_ <= kSettled + kDepth) memory_ = free_before_ - free_memory();
  if (profiling()) device::collect_times();
  return outcome;
}

// The steps behind the bad one changed no weight, but gradients: they are made once more.
template <class A>
std::string CudaEngine<A>::blame() {
  device::synchronize(stream());
  prepare(slot(state_.step), state_.step);
  step_.gradients(stream());
  const Buffer<float> gradients(layout_.extent);
  step_.pull_gradients(stream(), gradients.vector());
  return first_nonfinite(layout_, gradients.vector());
}

template <class A>
double CudaEngine<A>::score(const std::uint8_t* data, std::int64_t symbols) {
  const std::int64_t context = config_.model.context, most = config_.train.micro_batch;
  const Windows windows(symbols, context, 0);
  std::uint8_t* tokens = slots_[0].tokens.data();
  step_.begin_score(stream());
  double bits = 0;
  for (std::int64_t w = 0; w < windows.count();) {
    const std::int64_t length = windows[w].end - windows[w].begin;
    std::int64_t sequences = 0;
    for (; sequences < most && w < windows.count(); ++sequences, ++w) {
      if (windows[w].end - windows[w].begin != length) break;  // the last one, which is shorter
      std::copy_n(data + windows[w].begin, length, tokens + sequences * length);
    }
    told("validation after step", state_.step,
         [&] { step_.score(stream(), tokens, sequences, length, nats_.data()); });
    for (std::int64_t i = 0; i < sequences * length; ++i)
      bits += static_cast<double>(nats_.data()[i]) / std::numbers::ln2;
  }
  return bits / static_cast<double>(symbols);
}

}  // namespace

std::unique_ptr<Engine> make_cuda_engine(const EngineParts& parts) {
  const std::string& precision = parts.config.train.precision;
  if (precision == "f32") return std::make_unique<CudaEngine<float>>(parts);
  if (precision == "bf16") return std::make_unique<CudaEngine<bf16>>(parts);
  return std::make_unique<CudaEngine<fp16>>(parts);
}

}  // namespace longstride
