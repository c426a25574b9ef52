// What a run will hold in memory, worked out before any of it is allocated.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "longstride/config.h"
#include "longstride/train.h"
#include "model/parameters.h"
#include "model/training_pass.h"

namespace longstride {

// Bytes this process may still take: MemAvailable, or what its control group leaves, if less.
std::int64_t available_memory();
std::int64_t resident_memory();  // of this process, now

// The memory in which steps are made.
struct StepMemory {
  std::string device = "cpu";  // for people
  std::int64_t available = 0;
  bool shared = true;       // with other programs: activations shall take half of it at most
  double symbols_lost = 0;  // so many more a pass would do in the time that it takes beside its own

  // What passes and validation take beside weights, gradients, moments and averages. With a
  // micro_batch above 0.
  std::function<TrainingBytes(const Config& config, const Recompute& again)> bytes;
  // Ways to hold less than all, the quickest first.
  struct Way {
    Recompute again;
    double time;  // added, as a share of a step
  };
  std::function<std::vector<Way>(const ModelConfig& model)> ways;
};
StepMemory cpu_memory(std::int64_t available);
StepMemory cuda_memory();  // of the first card, now; throws where not built

// recompute "auto": the quickest way that fits; "on": the one of the least memory. micro_batch 0:
// `recorded`, that of the run so far, if that fits; else the quickest that fits, where more at once
// counts as quicker from 1 % of time on.
MemoryPlan plan_memory(const Config& config, const ParameterLayout& layout,
                       const StepMemory& memory, std::int64_t recorded = 0);

// Throws environment_error where the plan does not fit: what is planned, what is free, and the
// largest micro_batch that fits.
void require_fit(const MemoryPlan& plan, const Config& config, const ParameterLayout& layout,
                 const StepMemory& memory);

}  // namespace longstride
