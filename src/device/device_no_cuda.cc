#include "device/device.h"
#include "longstride/error.h"

namespace longstride::device {

bool built() { return false; }

std::vector<DeviceInfo> devices() { return {}; }

std::string why_none() { return "this build has no CUDA"; }

std::string versions() { return ""; }

void require(const char* who) {
  throw Error(Fault::not_supported,
              text(who, ": --device cuda, but ", why_none(), ", want --device cpu"));
}

}  // namespace longstride::device
