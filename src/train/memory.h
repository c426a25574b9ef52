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

// Sequences in one forward and backward pass.
std::int64_t micro_batch(const TrainConfig& train);

// The memory in which steps are made.
struct StepMemory {
  std::string device = "cpu";  // for people
  std::int64_t available = 0;
  bool shared = true;  // with other programs: activations shall take half of it at most

  // What passes and validation take beside weights, gradients, moments and averages. segment: how
  // many blocks run again at a time in backward; 0: none, all is kept.
  std::function<TrainingBytes(const Config& config, std::int64_t segment)> bytes;
  // Ways to run again, the quickest first.
  std::function<std::vector<std::int64_t>(const ModelConfig& model)> segments;
};
StepMemory cpu_memory(std::int64_t available);
StepMemory cuda_memory();  // of the first card, now; throws where not built

// recompute "auto": the quickest way that fits; "on": the one of the least memory.
MemoryPlan plan_memory(const Config& config, const ParameterLayout& layout,
                       const StepMemory& memory);

// Throws environment_error where the plan does not fit: what is planned, what is free, and the
// largest micro_batch that fits.
void require_fit(const MemoryPlan& plan, const Config& config, const ParameterLayout& layout,
                 const StepMemory& memory);

}  // namespace longstride
