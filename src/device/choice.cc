#include "device/choice.h"

#include "device/device.h"
#include "longstride/error.h"

namespace longstride::device {

namespace {

constexpr int kLeastMajor = 8;  // of the compute capability, as in require()

}  // namespace

bool on_cuda(const char* who, const std::string& device) {
  if (device == "cpu") return false;
  if (device == "cuda") {
    require(who);
    return true;
  }
  if (device != "auto")
    throw invalid_argument(who, ": device is \"", device, "\", want auto, cpu or cuda");
  const auto all = devices();
  return !all.empty() && all[0].major >= kLeastMajor;
}

void check_precision(const char* who, const std::string& precision, bool cuda) {
  if (precision != "f32" && precision != "bf16")
    throw invalid_argument(who, ": precision is \"", precision, "\", want f32 or bf16");
  if (precision == "bf16" && !cuda)
    throw Error(Fault::not_supported,
                text(who, ": precision bf16 on the CPU, want f32, or --device cuda"));
}

std::string name_of(bool cuda) { return cuda ? text("cuda (", devices().at(0).name, ")") : "cpu"; }

}  // namespace longstride::device
