// What the tests on a GPU share: the skip, and arrays that come and go.
#pragma once

#include <gtest/gtest.h>

#include <vector>

#include "device/cuda.h"
#include "device/device.h"
#include "device/upload.h"

namespace longstride::test {

// First line of every GPU test's SetUp: GTEST_SKIP() << ... unless there is a device.
class GpuTest : public testing::Test {
 protected:
  void SetUp() override {
    if (device::devices().empty()) GTEST_SKIP() << "no CUDA device: " << device::why_none();
  }
};

template <class T>
device::DeviceBuffer<T> to_device(const std::vector<T>& values) {
  return device::uploaded(values);
}

// Waits for all streams.
template <class T>
std::vector<T> to_host(const device::DeviceBuffer<T>& buffer) {
  std::vector<T> values(static_cast<std::size_t>(buffer.size()));
  device::check(cudaDeviceSynchronize(), "test");
  device::check(
      cudaMemcpy(values.data(), buffer.data(), values.size() * sizeof(T), cudaMemcpyDeviceToHost),
      "test output");
  return values;
}

// Device memory filled with bytes 0xff: a NaN in every type.
template <class T>
device::DeviceBuffer<T> poisoned_device(std::int64_t size) {
  device::DeviceBuffer<T> buffer(size);
  device::check(cudaMemset(buffer.data(), 0xff, static_cast<std::size_t>(buffer.bytes())), "test");
  device::synchronize(nullptr);  // streams of ours are not ordered behind it
  return buffer;
}

}  // namespace longstride::test
