#include "longstride/train.h"

#include "data/dataset.h"
#include "files/checkpoint.h"
#include "longstride/error.h"
#include "model/parameters.h"
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

}  // namespace

TrainResult train(const TrainOptions& options, const TrainObserver& observer) {
  validate(options.config);
  if (options.stop_at && *options.stop_at < 1)
    throw invalid_argument("train: stop_at is ", *options.stop_at, ", want >= 1");
  const Dataset data(options.data);
  check_splits(data, options.config);
  if (options.resume == Resume::never && !list_checkpoints(options.run).empty())
    throw invalid_argument("train: ", options.run.string(),
                           " holds checkpoints, want an empty run folder or --resume auto");

  const ParameterLayout layout(options.config.model);
  const MemoryPlan plan = plan_memory(options.config, layout, available_memory());
  const auto show_plan = [&] {
    if (observer.on_plan) observer.on_plan(plan);
  };
  if (options.dry_run) show_plan();
  require_fit(plan, options.config, layout);
  if (options.dry_run) return {};
  // A run folder that is refused shows no plan: one line says what is wrong.
  Trainer trainer(options, observer, data, layout, plan);
  show_plan();
  return trainer.run();
}

}  // namespace longstride
