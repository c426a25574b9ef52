#include "train/memory.h"

#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <fstream>
#include <limits>
#include <string>

#include "eval/scorer.h"
#include "longstride/error.h"
#include "model/training_pass.h"

namespace longstride {

namespace {

// A file that holds one number, or nothing ("max", or no such file).
std::int64_t number_in(const char* file, std::int64_t otherwise) {
  std::int64_t value = 0;
  return std::ifstream(file) >> value ? value : otherwise;
}

// "MemAvailable:  123456 kB"
std::int64_t system_available() {
  std::ifstream info("/proc/meminfo");
  std::string key, unit;
  std::int64_t kilobytes = 0;
  while (info >> key >> kilobytes && std::getline(info, unit))
    if (key == "MemAvailable:") return kilobytes * 1024;
  return std::numeric_limits<std::int64_t>::max();
}

std::string gib(std::int64_t bytes) {
  return fmt::format("{:.2f} GiB", static_cast<double>(bytes) / (1 << 30));
}

}  // namespace

std::int64_t available_memory() {
  constexpr auto kUnlimited = std::numeric_limits<std::int64_t>::max();
  const std::int64_t limit = number_in("/sys/fs/cgroup/memory.max", kUnlimited);
  const std::int64_t used = number_in("/sys/fs/cgroup/memory.current", 0);
  return std::min(system_available(), std::max<std::int64_t>(0, limit - used));
}

std::int64_t resident_memory() {
  std::int64_t total = 0, resident = 0;
  std::ifstream("/proc/self/statm") >> total >> resident;
  return resident * ::sysconf(_SC_PAGESIZE);
}

std::int64_t micro_batch(const TrainConfig& train) {
  return train.micro_batch ? train.micro_batch : train.batch;
}

MemoryPlan plan_memory(const Config& config, const ParameterLayout& layout,
                       std::int64_t available) {
  const TrainConfig& t = config.train;
  const std::int64_t array = layout.extent * static_cast<std::int64_t>(sizeof(float));
  const bool in_bf16 = t.precision == "bf16";
  MemoryPlan plan;
  plan.parameters = layout.count;
  plan.weights = plan.gradients = array;
  plan.optimizer = 2 * array;
  plan.averages = t.ema > 0 ? array : 0;
  plan.available = available;
  TrainingBytes pass = training_bytes(config.model, micro_batch(t), false, in_bf16);
  plan.recompute = t.recompute == "on" || (t.recompute == "auto" && pass.total() > available / 2);
  if (plan.recompute) pass = training_bytes(config.model, micro_batch(t), true, in_bf16);
  plan.kept = pass.kept;
  plan.scratch = pass.scratch + (t.validate_every > 0 ? scorer_bytes(config.model) : 0);
  return plan;
}

void require_fit(const MemoryPlan& plan, const Config& config, const ParameterLayout& layout) {
  if (plan.total() <= plan.available) return;
  Config smaller = config;
  for (std::int64_t micro = micro_batch(config.train) - 1; micro > 0; --micro) {
    if (config.train.batch % micro != 0) continue;
    smaller.train.micro_batch = micro;
    if (plan_memory(smaller, layout, plan.available).total() <= plan.available)
      throw environment_error("train: ", gib(plan.total()), " of memory planned, ",
                              gib(plan.available), " free; train.micro_batch=", micro,
                              " is the largest that fits");
  }
  throw environment_error("train: ", gib(plan.total()), " of memory planned, ", gib(plan.available),
                          " free; no train.micro_batch fits",
                          plan.recompute ? "" : " without train.recompute=on");
}

}  // namespace longstride
