#include "cli/bench_run.h"

#include <fmt/format.h>
#include <stdlib.h>  // mkdtemp, of POSIX
#include <sys/resource.h>

#include <algorithm>
#include <limits>
#include <random>

#include "cli/files.h"
#include "longstride/error.h"

namespace longstride::cli {

namespace {

constexpr std::int64_t kContexts = 16;  // of random bytes to train on

std::int64_t peak_memory() {
  rusage usage{};
  getrusage(RUSAGE_SELF, &usage);
  return std::int64_t{usage.ru_maxrss} * 1024;
}

void write_random_bytes(const std::filesystem::path& file, std::int64_t size) {
  std::mt19937_64 rng(1);
  std::string bytes(static_cast<std::size_t>(size), '\0');
  for (char& byte : bytes) byte = static_cast<char>(rng());
  write_file(file.string(), bytes);
}

}  // namespace

TemporaryFolder::TemporaryFolder() {
  std::string name = (std::filesystem::temp_directory_path() / "longstride-bench-XXXXXX").string();
  if (mkdtemp(name.data()) == nullptr)
    throw environment_error("bench: cannot make a temporary folder ", name);
  path = name;
}

TemporaryFolder::~TemporaryFolder() {
  std::error_code ignored;
  std::filesystem::remove_all(path, ignored);
}

TrainTimes train_some(Config config, std::int64_t warm_up, std::int64_t steps, Progress& progress,
                      const std::filesystem::path& folder) {
  TrainOptions options;
  options.config = std::move(config);
  options.config.train.steps = warm_up + steps;
  options.config.train.warmup = 0;
  options.config.train.validate_every = 0;
  options.config.train.checkpoint_every = 0;
  options.data = folder / "bytes";
  options.run = folder / "run";
  write_random_bytes(options.data, options.config.model.context * kContexts);

  TrainTimes times;
  times.steps = steps;
  times.best_seconds = std::numeric_limits<double>::infinity();
  TrainObserver observer;
  observer.on_plan = [&](const MemoryPlan& plan) { times.plan = plan; };
  observer.on_step = [&](const StepReport& step) {
    progress.state(fmt::format("step {}/{}", step.step, step.steps));
    if (step.step > warm_up) {
      times.mean_seconds += step.seconds / static_cast<double>(steps);
      times.best_seconds = std::min(times.best_seconds, step.seconds);
      times.symbols = step.seconds * step.symbols_per_second;
      times.flops = step.seconds * step.flops_per_second;
    }
    if (step.step == warm_up) set_profiling(true);
    if (step.step == step.steps) times.profile = take_profile();
  };
  train(options, observer);
  set_profiling(false);
  times.peak_memory = peak_memory();
  return times;
}

}  // namespace longstride::cli
