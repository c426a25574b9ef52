// The plan of memory for training on the GPU.
#include "train/memory.h"

#include <algorithm>

#include "base/integers.h"
#include "device/device.h"
#include "model/cuda/pass_plan.h"
#include "tensor/bf16.h"
#include "tensor/fp16.h"
#include "train/cuda/device_step.h"

namespace longstride {

namespace {

// For the code of the kernels, which is loaded when it is first called, and the step's graph.
constexpr std::int64_t kReserve = std::int64_t{256} << 20;

template <class A>
TrainingBytes bytes_in(const Config& config, std::int64_t segment) {
  const DevicePassBytes pass =
      device_pass_bytes<A>(config.model, config.train.micro_batch, DevicePassPlan{segment});
  return {pass.kept,
          pass.scratch + DeviceStep<A>::scratch_bytes(config, ParameterLayout(config.model))};
}

// Of equal segments: with k of them (k - 1) / k of the blocks run again.
std::vector<std::int64_t> segments(const ModelConfig& model) {
  std::vector<std::int64_t> all;
  for (std::int64_t k = 2; k <= model.layers; ++k)
    if (const std::int64_t s = ceil_div(model.layers, k); all.empty() || s != all.back())
      all.push_back(s);
  if (all.empty()) all.push_back(1);
  return all;
}

}  // namespace

StepMemory cuda_memory() {
  device::require("train");
  const device::DeviceInfo card = device::devices().at(0);
  StepMemory memory;
  memory.device = card.name;
  memory.available = std::max<std::int64_t>(0, card.free - kReserve);
  memory.shared = false;
  memory.symbols_lost = 3000;
  memory.bytes = [](const Config& config, std::int64_t segment) {
    const std::string& precision = config.train.precision;
    return precision == "f32"    ? bytes_in<float>(config, segment)
           : precision == "bf16" ? bytes_in<bf16>(config, segment)
                                 : bytes_in<fp16>(config, segment);
  };
  memory.segments = segments;
  return memory;
}

}  // namespace longstride
