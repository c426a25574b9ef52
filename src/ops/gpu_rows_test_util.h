// Matrices in device memory for the tests of operations on the GPU: rows with a gap behind each,
// poisoned where nothing was put, and what they hold as exact numbers.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <vector>

#include "device/gpu_test_util.h"
#include "ops/test_util.h"
#include "tensor/bf16.h"
#include "tensor/fp16.h"

namespace longstride::test {

// values as A holds them, in Real.
template <class A, class Real = double>
std::vector<Real> rounded(const std::vector<float>& values) {
  std::vector<Real> result;
  for (const float value : values)
    result.push_back(static_cast<Real>(static_cast<float>(static_cast<A>(value))));
  return result;
}

// Where a matrix of a test lies: elements behind each row, before the first.
struct Gaps {
  std::int64_t behind = 0, before = 0;
};

template <class A>
class DeviceRows {
 public:
  // Nothing was written yet: every byte is 0xff.
  DeviceRows(std::int64_t rows, std::int64_t cols, Gaps gaps = {})
      : rows_(rows), cols_(cols), gaps_(gaps), memory_(poisoned_device<A>(extent())) {}
  DeviceRows(std::int64_t rows, std::int64_t cols, const std::vector<float>& values, Gaps gaps = {})
      : DeviceRows(rows, cols, gaps) {
    fill(values);
  }

  void fill(const std::vector<float>& values) {
    std::vector<A> host = to_host(memory_);
    for (std::int64_t i = 0; i < rows_ * cols_; ++i)
      host[place(i)] = static_cast<A>(values[static_cast<std::size_t>(i)]);
    device::copy(nullptr, memory_.data(), host.data(), memory_.bytes());
    device::synchronize(nullptr);
  }

  Matrix<A> matrix() const { return {memory_.data() + gaps_.before, rows_, cols_, stride()}; }

  std::vector<float> values() const {
    const std::vector<A> host = to_host(memory_);
    std::vector<float> result;
    for (std::int64_t i = 0; i < rows_ * cols_; ++i)
      result.push_back(static_cast<float>(host[place(i)]));
    return result;
  }

  // Nothing was written beside the rows.
  bool gaps_untouched() const {
    std::vector<A> host = to_host(memory_);
    for (std::int64_t i = 0; i < rows_ * cols_; ++i)
      std::memset(static_cast<void*>(&host[place(i)]), 0xff, sizeof(A));
    const auto* const bytes = reinterpret_cast<const unsigned char*>(host.data());
    return std::all_of(bytes, bytes + host.size() * sizeof(A),
                       [](unsigned char byte) { return byte == 0xff; });
  }

 private:
  std::int64_t stride() const { return cols_ + gaps_.behind; }
  std::int64_t extent() const { return gaps_.before + rows_ * stride(); }
  std::size_t place(std::int64_t i) const {
    return static_cast<std::size_t>(gaps_.before + i / cols_ * stride() + i % cols_);
  }

  std::int64_t rows_, cols_;
  Gaps gaps_;
  device::DeviceBuffer<A> memory_;
};

// Whether a test may take so much of the card.
inline bool device_has(std::int64_t bytes) { return device::devices().at(0).free >= bytes; }

}  // namespace longstride::test
