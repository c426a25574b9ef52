// The CUDA devices of this machine, for code that is built with and without CUDA.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace longstride::device {

struct DeviceInfo {
  std::string name;
  int major = 0, minor = 0;  // compute capability
  int multiprocessors = 0;
  std::int64_t memory = 0, free = 0;  // bytes
};

bool built();                       // whether this build has the CUDA backend
std::vector<DeviceInfo> devices();  // none: why_none() says why
std::string why_none();  // "this build has no CUDA", "no driver", "driver 12.2 is older than ..."
std::string versions();  // "runtime 13.0, driver 13.0, cuBLASLt 13.0.0"; "" without CUDA

// Throws (device) unless a device can be used: "train: --device cuda, but ...".
void require(const char* who);

}  // namespace longstride::device
