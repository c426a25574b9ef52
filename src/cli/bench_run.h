// A short training on random bytes, in a folder that goes away.
#pragma once

#include <filesystem>
#include <string>
#include <vector>

#include "cli/progress.h"
#include "longstride/config.h"
#include "longstride/runtime.h"
#include "longstride/train.h"

namespace longstride::cli {

// A folder that goes away with its contents.
class TemporaryFolder {
 public:
  TemporaryFolder();
  ~TemporaryFolder();
  TemporaryFolder(const TemporaryFolder&) = delete;
  std::filesystem::path path;
};

struct TrainTimes {
  MemoryPlan plan;
  double mean_seconds = 0, best_seconds = 0;  // of a step
  double symbols = 0, flops = 0;              // of a step; needed ones
  std::int64_t steps = 0;                     // timed
  // Most resident bytes that the process has had; on the GPU most that were in use there.
  std::int64_t peak_memory = 0;
  double peak_flops = 0;  // a second, as the run measured them in its precision
  std::vector<ProfileRow>
      profile;  // of the timed steps; on the GPU of profiled_steps others, which
  std::int64_t profiled_steps = 0;  // run operation by operation and not as one graph
  bool on_gpu() const { return plan.device != "cpu"; }
};

struct TrainSome {
  Config config;
  std::string device = "cpu";  // as TrainOptions::device
  std::int64_t warm_up = 0, steps = 1;
  bool save = false;  // leaves a checkpoint
};

// Trains in `folder` (run in folder/run) for warm_up steps, then `steps` that are timed. Of the
// config's own schedule only the learning rate counts.
TrainTimes train_some(const TrainSome& what, Progress& progress,
                      const std::filesystem::path& folder);

}  // namespace longstride::cli
