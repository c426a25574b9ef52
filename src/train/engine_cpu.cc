// Training on the CPU: a step is made when it is collected, on the state itself.
#include "eval/scorer.h"
#include "ops/linear/linear.h"
#include "ops/linear/peak.h"
#include "train/engine.h"
#include "train/memory.h"
#include "train/training_step.h"

namespace longstride {

namespace {

double measure_peak(const EngineParts& parts) {
  if (parts.config.train.precision != "bf16") return ops::measure_peak_flops();
  if (!ops::bf16_is_native() && parts.warn)
    parts.warn(
        "train: this processor has no bf16 instructions; train.precision=bf16 saves memory, not "
        "time");
  return ops::measure_peak_bf16_flops();
}

class CpuEngine final : public Engine {
 public:
  explicit CpuEngine(const EngineParts& parts)
      : model_(parts.config.model),
        state_(parts.state),
        step_(parts.config, parts.layout, static_cast<bool>(parts.plan.recompute),
              parts.data.data(), parts.data.split("train")),
        peak_flops_(measure_peak(parts)) {}

  int depth() const override { return 1; }
  void submit() override {}
  StepOutcome collect() override { return step_.run(state_); }
  void pull() override {}

  double score(const std::uint8_t* data, std::int64_t symbols) override {
    if (!scorer_) scorer_ = std::make_unique<Scorer>(model_);
    return mean_bits(*scorer_, state_.evaluated(), data, symbols, model_.context);
  }

  double peak_flops() const override { return peak_flops_; }
  std::int64_t memory() const override { return resident_memory(); }

 private:
  const ModelConfig& model_;
  TrainState& state_;
  TrainingStep step_;
  std::unique_ptr<Scorer> scorer_;  // made at the first validation
  double peak_flops_;
};

}  // namespace

std::unique_ptr<Engine> make_cpu_engine(const EngineParts& parts) {
  return std::make_unique<CpuEngine>(parts);
}

}  // namespace longstride
