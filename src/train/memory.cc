#include "train/memory.h"

#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <fstream>
#include <limits>
#include <string>

#include "base/integers.h"
#include "eval/scorer.h"
#include "longstride/error.h"

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

// Whether the plan leaves what it should to others.
bool comfortable(const MemoryPlan& plan, const StepMemory& memory) {
  return memory.shared ? plan.kept + plan.scratch <= memory.available / 2
                       : plan.total() <= memory.available;
}

// With the micro_batch of the config.
MemoryPlan plan_passes(const Config& config, const ParameterLayout& layout,
                       const StepMemory& memory) {
  const TrainConfig& t = config.train;
  const std::int64_t array = layout.extent * static_cast<std::int64_t>(sizeof(float));
  MemoryPlan plan;
  plan.device = memory.device;
  plan.precision = t.precision;
  plan.micro_batch = t.micro_batch;
  plan.parameters = layout.count;
  plan.weights = plan.gradients = array;
  plan.optimizer = 2 * array;
  plan.averages = t.ema > 0 ? array : 0;
  plan.available = memory.available;
  const auto with = [&](const StepMemory::Way& way) {
    const TrainingBytes pass = memory.bytes(config, way.again);
    MemoryPlan next = plan;
    next.recompute = way.again;
    next.recompute_time = way.time;
    next.kept = pass.kept;
    next.scratch = pass.scratch;
    return next;
  };
  MemoryPlan best = with({});
  if (t.recompute == "off" || (t.recompute == "auto" && comfortable(best, memory))) return best;
  bool first = true;
  for (const StepMemory::Way& way : memory.ways(config.model)) {
    const MemoryPlan next = with(way);
    if (t.recompute == "auto" && comfortable(next, memory)) return next;
    if (first || next.total() < best.total()) best = next;
    first = false;
  }
  return best;
}

constexpr double kWorthIt = 0.99;

// Of a symbol, against one of an endless pass that keeps everything.
double relative_time(const MemoryPlan& plan, const ModelConfig& model, const StepMemory& memory) {
  const auto symbols = static_cast<double>(plan.micro_batch) * static_cast<double>(model.context);
  return (1 + plan.recompute_time) * (1 + memory.symbols_lost / symbols);
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

StepMemory cpu_memory(std::int64_t available) {
  StepMemory memory;
  memory.available = available;
  memory.symbols_lost = 100;
  memory.bytes = [](const Config& config, const Recompute& again) {
    const TrainConfig& t = config.train;
    TrainingBytes bytes = training_bytes(config.model, t.micro_batch, static_cast<bool>(again),
                                         t.precision == "bf16");
    if (t.validate_every > 0) bytes.scratch += scorer_bytes(config.model);
    return bytes;
  };
  memory.ways = [](const ModelConfig& model) {
    constexpr double kForwardShare = 0.3;  // of a step; the last block does not run again
    const double blocks = 1 - 1 / static_cast<double>(model.layers);
    return std::vector<StepMemory::Way>{{{.segment = 1}, kForwardShare * blocks}};
  };
  return memory;
}

MemoryPlan plan_memory(const Config& config, const ParameterLayout& layout,
                       const StepMemory& memory, std::int64_t recorded) {
  const std::int64_t batch = config.train.batch;
  Config one = config;
  if (config.train.micro_batch > 0) return plan_passes(one, layout, memory);
  if (recorded > 0 && batch % recorded == 0) {
    one.train.micro_batch = recorded;
    const MemoryPlan plan = plan_passes(one, layout, memory);
    if (plan.total() <= plan.available) return plan;
  }
  one.train.micro_batch = 1;
  MemoryPlan best = plan_passes(one, layout, memory);
  for (std::int64_t micro = 2; micro <= batch; ++micro) {
    if (batch % micro != 0) continue;
    one.train.micro_batch = micro;
    const MemoryPlan plan = plan_passes(one, layout, memory);
    if (!comfortable(plan, memory)) break;
    if (relative_time(plan, config.model, memory) <
        kWorthIt * relative_time(best, config.model, memory))
      best = plan;
  }
  return best;
}

void require_fit(const MemoryPlan& plan, const Config& config, const ParameterLayout& layout,
                 const StepMemory& memory) {
  if (plan.total() <= plan.available) return;
  const std::string planned = text("train: ", gib(plan.total()), " of memory",
                                   plan.device == "cpu" ? "" : " of " + plan.device, " planned, ",
                                   gib(plan.available), " free");
  Config smaller = config;
  for (std::int64_t micro = plan.micro_batch - 1; micro > 0; --micro) {
    if (config.train.batch % micro != 0) continue;
    smaller.train.micro_batch = micro;
    if (plan_memory(smaller, layout, memory).total() <= plan.available)
      throw environment_error(planned, "; train.micro_batch=", micro, " is the largest that fits");
  }
  throw environment_error(planned, "; no train.micro_batch fits",
                          plan.recompute ? "" : " without train.recompute=on");
}

}  // namespace longstride
