// What the GPU's training pass will take.
#pragma once

#include <cstdint>

#include "longstride/config.h"
#include "model/device_layout.h"

namespace longstride {

struct DevicePassBytes {
  std::int64_t kept = 0;     // what blocks keep, but for what the gradients have room in
  std::int64_t scratch = 0;  // shared by all blocks, copies of the weights included
  std::int64_t total() const { return kept + scratch; }
};

// Floats of scratch that the attention of any block wants in backward.
template <class A>
std::int64_t device_attention_scratch(const ModelConfig& model, std::int64_t batch);

// What a DeviceTrainingPass<A> owns beside the gradients (4 bytes an element of the parameters),
// and but for the library's workspace (LinearContext::bytes()). attention: floats as above; 0 where
// it does not train.
template <class A>
DevicePassBytes device_pass_bytes(const ModelConfig& model, const ParameterLayout& parameters,
                                  std::int64_t batch, const DevicePassPlan& plan,
                                  std::int64_t attention);

}  // namespace longstride
