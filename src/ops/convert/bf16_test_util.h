// What the tests of the bf16 overloads share: inputs that are bf16 values, outputs with a guard
// behind their end.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <cstdint>
#include <vector>

#include "ops/test_util.h"
#include "tensor/bf16.h"

namespace longstride::test {

inline std::vector<bf16> to_bf16(const std::vector<float>& values) {
  std::vector<bf16> rounded;
  for (const float value : values) rounded.emplace_back(value);
  return rounded;
}

inline std::vector<float> to_float(const std::vector<bf16>& values) {
  std::vector<float> wide;
  for (const bf16 value : values) wide.push_back(static_cast<float>(value));
  return wide;
}

// Values that bf16 holds, as Real.
template <class Real>
std::vector<Real> random_bf16(std::int64_t size, std::uint64_t seed, double scale = 1) {
  std::vector<Real> values;
  for (const float value : to_float(to_bf16(random_normal<float>(size, seed, scale))))
    values.push_back(static_cast<Real>(value));
  return values;
}

// An output of `size` values that nobody has written yet, and what stands behind it.
class GuardedBf16 {
 public:
  explicit GuardedBf16(std::int64_t size) : size_(size), values_(to_bf16(poisoned<float>(size))) {
    for (std::uint16_t i = 0; i < kGuard; ++i) values_.emplace_back().bits = kMark;
  }

  bf16* data() { return values_.data(); }
  Vector<bf16> vector() { return {data(), size_}; }
  std::vector<float> floats() const { return to_float({values_.begin(), values_.end() - kGuard}); }
  bool untouched_behind() const {
    return std::all_of(values_.end() - kGuard, values_.end(),
                       [](bf16 value) { return value.bits == kMark; });
  }

 private:
  static constexpr std::uint16_t kGuard = 64, kMark = 0x1234;

  std::int64_t size_;
  std::vector<bf16> values_;
};

}  // namespace longstride::test
