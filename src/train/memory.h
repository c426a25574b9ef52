// What a run will hold in memory, worked out before any of it is allocated.
#pragma once

#include <cstdint>

#include "longstride/config.h"
#include "longstride/train.h"
#include "model/parameters.h"

namespace longstride {

// Bytes this process may still take: MemAvailable, or what its control group leaves, if less.
std::int64_t available_memory();
std::int64_t resident_memory();  // of this process, now

// Sequences in one forward and backward pass.
std::int64_t micro_batch(const TrainConfig& train);

// recompute "auto": off where the activations kept without it fit in half of `available`.
MemoryPlan plan_memory(const Config& config, const ParameterLayout& layout, std::int64_t available);

// Throws environment_error where the plan does not fit: what is planned, what is free, and the
// largest micro_batch that fits.
void require_fit(const MemoryPlan& plan, const Config& config, const ParameterLayout& layout);

}  // namespace longstride
