#include "device/device.h"
#include "sample/predictor.h"

namespace longstride {

std::unique_ptr<Predictor> make_cuda_predictor(const ModelConfig&, Vector<const float>, bool,
                                               std::int64_t, const std::string&) {
  device::require("sample");
  return nullptr;
}

}  // namespace longstride
