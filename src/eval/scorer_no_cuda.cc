#include "device/device.h"
#include "eval/scorer.h"

namespace longstride {

std::unique_ptr<WindowScorer> make_cuda_scorer(const ModelConfig&, const std::string&) {
  device::require("eval");
  return nullptr;
}

std::int64_t cuda_scorer_bytes(const ModelConfig&, const std::string&) {
  device::require("eval");
  return 0;
}

}  // namespace longstride
