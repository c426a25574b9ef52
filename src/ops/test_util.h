// What the tests of the operations share: inputs, poison, comparison of bits, numeric gradients,
// and a loop over the instruction sets of this machine.
#pragma once

#include <gtest/gtest.h>
#include <hwy/targets.h>

#include <cmath>
#include <cstdint>
#include <cstring>
#include <functional>
#include <limits>
#include <string>
#include <vector>

#include "base/rng.h"
#include "base/threads.h"
#include "longstride/error.h"
#include "tensor/tensor.h"

namespace longstride::test {

// Normal numbers with mean `shift`, rounded to float, so that both precisions get the same inputs.
template <class Real>
std::vector<Real> random_normal(std::int64_t size, std::uint64_t seed, double scale = 1,
                                double shift = 0) {
  std::vector<Real> values(static_cast<std::size_t>(size));
  for (std::size_t i = 0; i < values.size(); ++i)
    values[i] = static_cast<Real>(
        static_cast<float>(shift + scale * normal2(random4(seed, Stream::test, 0, i / 2))[i % 2]));
  return values;
}

inline std::vector<std::uint8_t> random_bytes(std::int64_t size, std::uint64_t seed,
                                              std::uint32_t below = 256) {
  std::vector<std::uint8_t> values(static_cast<std::size_t>(size));
  for (std::size_t i = 0; i < values.size(); ++i)
    values[i] = static_cast<std::uint8_t>(random4(seed, Stream::test, 1, i)[0] % below);
  return values;
}

// An output nobody has written yet.
template <class Real>
std::vector<Real> poisoned(std::int64_t size) {
  return std::vector<Real>(static_cast<std::size_t>(size), std::numeric_limits<Real>::quiet_NaN());
}

inline std::vector<double> to_double(const std::vector<float>& values) {
  return {values.begin(), values.end()};
}

template <class T>
Vector<T> view(std::vector<T>& values) {
  return {values.data(), static_cast<std::int64_t>(values.size())};
}

template <class T>
Vector<const T> view(const std::vector<T>& values) {
  return {values.data(), static_cast<std::int64_t>(values.size())};
}

template <class T>
testing::AssertionResult same_bits(const std::vector<T>& a, const std::vector<T>& b) {
  if (a.size() != b.size())
    return testing::AssertionFailure() << a.size() << " values against " << b.size();
  for (std::size_t i = 0; i < a.size(); ++i)
    if (std::memcmp(&a[i], &b[i], sizeof(T)) != 0)
      return testing::AssertionFailure() << "at " << i << ": " << a[i] << " against " << b[i];
  return testing::AssertionSuccess();
}

// run() returns all outputs of an operation; they may not depend on the number of threads.
inline void expect_same_for_any_threads(const std::function<std::vector<float>()>& run) {
  set_threads(1);
  const std::vector<float> alone = run();
  for (const int count : {2, 4}) {
    set_threads(count);
    EXPECT_TRUE(same_bits(run(), alone)) << count << " threads";
  }
  set_threads(0);
}

// Runs body() with each instruction set that this machine has and the kernels are compiled for.
inline void for_each_target(const std::function<void()>& body) {
  for (const std::int64_t target : hwy::SupportedAndGeneratedTargets()) {
    SCOPED_TRACE(hwy::TargetName(target));
    hwy::SetSupportedTargetsForTest(target);
    hwy::GetChosenTarget().Update(target);
    body();
  }
  hwy::SetSupportedTargetsForTest(0);
  hwy::GetChosenTarget().Update(hwy::SupportedTargets());
}

// d loss / d x by central differences of the fourth order.
inline std::vector<double> numeric_gradient(std::vector<double>& x,
                                            const std::function<double()>& loss, double h = 1e-3) {
  std::vector<double> gradient;
  for (double& element : x) {
    const double at = element;
    const auto difference = [&](double step) {
      element = at + step;
      const double right = loss();
      element = at - step;
      const double left = loss();
      element = at;
      return right - left;
    };
    gradient.push_back((8 * difference(h) - difference(2 * h)) / (12 * h));
  }
  return gradient;
}

inline double dot(const std::vector<double>& a, const std::vector<double>& b) {
  double sum = 0;
  for (std::size_t i = 0; i < a.size(); ++i) sum += a[i] * b[i];
  return sum;
}

// The message of the invalid_argument that call() throws.
inline std::string error_of(const std::function<void()>& call) {
  try {
    call();
  } catch (const Error& error) {
    EXPECT_EQ(error.fault, Fault::invalid_argument);
    return error.what();
  }
  return "no error";
}

}  // namespace longstride::test
