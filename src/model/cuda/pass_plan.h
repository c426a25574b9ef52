// How the GPU's training pass trades memory for time, and what it will take.
#pragma once

#include <cstdint>

#include "longstride/config.h"

namespace longstride {

// segment 0: everything that backward needs is kept. Else only the residual stream is, in front of
// every `segment` blocks, and these run again in backward (all but the last segment, which is still
// there). Same bits in all cases. trains = false: score() alone.
struct DevicePassPlan {
  std::int64_t segment = 0;
  bool trains = true;
};

struct DevicePassBytes {
  std::int64_t kept = 0;     // lives between forward and backward
  std::int64_t scratch = 0;  // shared by all layers, copies of the weights included
  std::int64_t total() const { return kept + scratch; }
};

// What a DeviceTrainingPass<A> owns, but for the library's workspace (LinearContext::bytes()).
template <class A>
DevicePassBytes device_pass_bytes(const ModelConfig& model, std::int64_t batch,
                                  const DevicePassPlan& plan);

}  // namespace longstride
