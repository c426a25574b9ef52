// A short training on random bytes, in a folder that goes away.
#pragma once

#include <filesystem>
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
  std::int64_t peak_memory = 0;               // most resident bytes that the process has had
  std::vector<ProfileRow> profile;            // of the timed steps
};

// Trains in `folder` (run in folder/run) for warm_up steps, then `steps` that are timed. Of the
// config's own schedule only the learning rate counts.
TrainTimes train_some(Config config, std::int64_t warm_up, std::int64_t steps, Progress& progress,
                      const std::filesystem::path& folder);

}  // namespace longstride::cli
