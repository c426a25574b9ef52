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

// On the GPU, steps whose operations are timed are launched one by one and not as one graph. So
// they are others: they follow the timed ones, and one more, which is under way by then.
constexpr std::int64_t kProfiledOnGpu = 3;

TrainOptions short_run(const TrainSome& what, const std::filesystem::path& folder) {
  TrainOptions options;
  options.config = what.config;
  options.config.train.steps = what.warm_up + what.steps + 1 + kProfiledOnGpu;
  options.config.train.warmup = 0;
  options.config.train.validate_every = 0;
  options.config.train.checkpoint_every = 0;
  options.data = folder / "bytes";
  options.run = folder / "run";
  options.device = what.device;
  options.save = what.save;
  return options;
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
  const std::int64_t timed_end = what.warm_up + what.steps;
  TrainTimes times;
  times.steps = what.steps;
  times.best_seconds = std::numeric_limits<double>::infinity();
  std::int64_t last = 0;
  bool over = false;
  TrainObserver observer;
  observer.on_plan = [&](const MemoryPlan& plan) {
    times.plan = plan;
    times.profiled_steps = times.on_gpu() ? kProfiledOnGpu : what.steps;
    last = times.on_gpu() ? timed_end + 1 + kProfiledOnGpu : timed_end;
  };
  observer.on_step = [&](const StepReport& step) {
    progress.state(fmt::format("step {}/{}", step.step, last));
    times.peak_memory = std::max(times.peak_memory, step.memory);
    times.peak_flops = step.peak_flops_per_second;
    if (step.step > what.warm_up && step.step <= timed_end) {
      times.mean_seconds += step.seconds / static_cast<double>(what.steps);
      times.best_seconds = std::min(times.best_seconds, step.seconds);
      times.symbols = step.seconds * step.symbols_per_second;
      times.flops = step.seconds * step.flops_per_second;
    }
    if (step.step == (times.on_gpu() ? timed_end : what.warm_up)) set_profiling(true);
    over = step.step == last;
    if (over) times.profile = take_profile();
  };
  observer.stop_requested = [&] { return over; };
  train(short_run(what, folder), observer);
  set_profiling(false);
  if (!times.on_gpu()) times.peak_memory = peak_memory();
  return times;
}

}  // namespace longstride::cli
