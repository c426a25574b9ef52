#include "longstride/train.h"

#include "data/dataset.h"
#include "device/choice.h"
#include "files/checkpoint.h"
#include "longstride/error.h"
#include "model/parameters.h"
#include "train/checkpoint_state.h"
#include "train/memory.h"
#include "train/trainer.h"

namespace longstride {

namespace {

void check_splits(const Dataset& data, const Config& config) {
  if (const Span train = data.split("train"); train.size() < config.model.context)
    throw invalid_argument("train: the train split has ", train.size(),
                           " bytes, want model.context ", config.model.context, " at least");
  if (config.train.validate_every > 0 && data.split("valid").size() < 1)
    throw invalid_argument("train: the valid split of ", data.size(),
                           " bytes is empty, want more data or train.validate_every=0");
}

// With "auto" replaced by what it means on this machine.
TrainOptions resolved(const TrainOptions& given) {
  TrainOptions options = given;
  const bool cuda = device::on_cuda("train", given.device);
  options.device = cuda ? "cuda" : "cpu";
  std::string& precision = options.config.train.precision;
  if (precision == "auto") precision = cuda ? "bf16" : "f32";
  if (precision == "fp16" && !cuda)
    throw invalid_argument("train: train.precision is fp16 on the CPU, want f32 or bf16, or a GPU");
  return options;
}

// Another program may have taken what was free when the plan was made: told as a plan that does not
// fit.
std::unique_ptr<Engine> make_cuda_engine_or_tell(const EngineParts& parts) {
  try {
    return make_cuda_engine(parts);
  } catch (const Error& e) {
    if (e.fault != Fault::environment) throw;
    const StepMemory memory = cuda_memory();
    MemoryPlan plan = parts.plan;
    plan.available = memory.available;
    require_fit(plan, parts.config, parts.layout, memory);
    throw;
  }
}

}  // namespace

TrainResult train(const TrainOptions& given, const TrainObserver& observer) {
  validate(given.config);
  if (given.stop_at && *given.stop_at < 1)
    throw invalid_argument("train: stop_at is ", *given.stop_at, ", want >= 1");
  TrainOptions options = resolved(given);
  const Dataset data(options.data);
  check_splits(data, options.config);
  if (options.resume == Resume::never && !list_checkpoints(options.run).empty())
    throw invalid_argument("train: ", options.run.string(),
                           " holds checkpoints, want an empty run folder or --resume auto");

  const ParameterLayout layout(options.config.model);
  const bool cuda = options.device == "cuda";
  const StepMemory memory = cuda ? cuda_memory() : cpu_memory(available_memory());
  const MemoryPlan plan = plan_memory(options.config, layout, memory,
                                      recorded_micro_batch(options.run, options.device));
  const auto show_plan = [&] {
    if (observer.on_plan) observer.on_plan(plan);
  };
  if (options.dry_run) show_plan();
  require_fit(plan, options.config, layout, memory);
  if (options.dry_run) return {};
  options.config.train.micro_batch = plan.micro_batch;
  // A run folder that is refused shows no plan: one line says what is wrong.
  Trainer trainer(options, observer, data, layout, plan,
                  cuda ? make_cuda_engine_or_tell : make_cpu_engine);
  show_plan();
  return trainer.run();
}

}  // namespace longstride
