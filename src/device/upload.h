// Arrays of the host on the device. Only for files that are built with CUDA.
#pragma once

#include <vector>

#include "device/cuda.h"

namespace longstride::device {

// Complete on return: a plain cudaMemcpy from pageable memory may still be under way, and streams
// of ours are not ordered behind the default one.
template <class T>
DeviceBuffer<T> uploaded(const std::vector<T>& values) {
  DeviceBuffer<T> buffer(static_cast<std::int64_t>(values.size()));
  copy(nullptr, buffer.data(), values.data(), buffer.bytes());
  synchronize(nullptr);
  return buffer;
}

}  // namespace longstride::device
