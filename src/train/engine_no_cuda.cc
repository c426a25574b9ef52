// Training on a GPU in a build that has none.
#include "device/device.h"
#include "train/engine.h"
#include "train/memory.h"

namespace longstride {

std::unique_ptr<Engine> make_cuda_engine(const EngineParts&) {
  device::require("train");
  return nullptr;
}

StepMemory cuda_memory() {
  device::require("train");
  return {};
}

}  // namespace longstride
