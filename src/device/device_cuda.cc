#include <cublasLt.h>

#include "device/cuda.h"
#include "device/device.h"

namespace longstride::device {

namespace {

std::string version(int number) {  // 13010 -> 13.1
  return text(number / 1000, ".", number % 1000 / 10);
}

int runtime_version() {
  int number = 0;
  cudaRuntimeGetVersion(&number);
  return number;
}

int driver_version() {
  int number = 0;
  cudaDriverGetVersion(&number);
  return number;
}

}  // namespace

bool built() { return true; }

std::vector<DeviceInfo> devices() {
  std::vector<DeviceInfo> all;
  int count = 0;
  if (cudaGetDeviceCount(&count) != cudaSuccess) {
    cudaGetLastError();
    return all;
  }
  for (int d = 0; d < count; ++d) {
    cudaDeviceProp properties;
    std::size_t free = 0, total = 0;
    if (cudaGetDeviceProperties(&properties, d) != cudaSuccess || cudaSetDevice(d) != cudaSuccess ||
        cudaMemGetInfo(&free, &total) != cudaSuccess) {
      cudaGetLastError();
      continue;
    }
    all.push_back({properties.name, properties.major, properties.minor,
                   properties.multiProcessorCount, static_cast<std::int64_t>(total),
                   static_cast<std::int64_t>(free)});
  }
  if (!all.empty()) cudaSetDevice(0);
  return all;
}

std::string why_none() {
  if (driver_version() == 0) return "no NVIDIA driver is loaded";
  if (driver_version() / 1000 < runtime_version() / 1000)
    return text("the driver is for CUDA ", version(driver_version()), ", want ",
                runtime_version() / 1000, ".0 or newer");
  int count = 0;
  const cudaError_t status = cudaGetDeviceCount(&count);
  cudaGetLastError();
  return status != cudaSuccess ? cudaGetErrorString(status) : "no device is visible";
}

std::string versions() {
  const auto lt = static_cast<int>(cublasLtGetVersion());  // 130000: 13.0.0
  return text("runtime ", version(runtime_version()), ", driver ",
              driver_version() == 0 ? "none" : version(driver_version()), ", cuBLASLt ", lt / 10000,
              ".", lt / 100 % 100, ".", lt % 100);
}

void require(const char* who) {
  const auto all = devices();
  if (all.empty())
    throw Error(Fault::device,
                text(who, ": --device cuda, but ", why_none(), ", want --device cpu"));
  if (all[0].major < 8)
    throw Error(Fault::device, text(who, ": ", all[0].name, " has compute capability ",
                                    all[0].major, ".", all[0].minor, ", want 8.0 or newer"));
}

}  // namespace longstride::device
