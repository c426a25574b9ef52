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

TrainOptions short_run(const TrainSome& what, std::int64_t steps,
                       const std::filesystem::path& folder, const char* run) {
  TrainOptions options;
  options.config = what.config;
  options.config.train.steps = steps;
  options.config.train.warmup = 0;
  options.config.train.validate_every = 0;
  options.config.train.checkpoint_every = 0;
  options.data = folder / "bytes";
  options.run = folder / run;
  options.device = what.device;
  return options;
}

// A run of its own: while times are taken, steps are no graph.
void profile_device(const TrainSome& what, const std::filesystem::path& folder, TrainTimes& times) {
  times.profiled_steps = 3;
  set_profiling(true);
  train(short_run(what, times.profiled_steps, folder, "profile"), {});
  times.profile = take_profile();
  set_profiling(false);
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

TrainTimes train_some(const TrainSome& what, Progress& progress,
                      const std::filesystem::path& folder) {
  write_random_bytes(folder / "bytes", what.config.model.context * kContexts);
  TrainTimes times;
  times.steps = what.steps;
  times.best_seconds = std::numeric_limits<double>::infinity();
  TrainObserver observer;
  observer.on_plan = [&](const MemoryPlan& plan) { times.plan = plan; };
  observer.on_step = [&](const StepReport& step) {
    progress.state(fmt::format("step {}/{}", step.step, step.steps));
    times.peak_memory = std::max(times.peak_memory, step.memory);
    times.peak_flops = step.peak_flops_per_second;
    if (step.step > what.warm_up) {
      times.mean_seconds += step.seconds / static_cast<double>(what.steps);
      times.best_seconds = std::min(times.best_seconds, step.seconds);
      times.symbols = step.seconds * step.symbols_per_second;
      times.flops = step.seconds * step.flops_per_second;
    }
    if (times.on_gpu()) return;
    if (step.step == what.warm_up) set_profiling(true);
    if (step.step == step.steps) times.profile = take_profile();
  };
  train(short_run(what, what.warm_up + what.steps, folder, "run"), observer);
  set_profiling(false);
  times.profiled_steps = what.steps;
  if (times.on_gpu())
    profile_device(what, folder, times);
  else
    times.peak_memory = peak_memory();
  return times;
}

}  // namespace longstride::cli
