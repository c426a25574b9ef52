// Comparison of a result with the truth in float64, with a bound that nobody picked: at most twice
// what the plain formula loses in the same precision.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

namespace longstride::test {

struct Worst {
  std::size_t at = 0;
  double error = 0;
};

template <class Got>
Worst worst(const Got& got, const std::vector<double>& want) {
  Worst w;
  for (std::size_t i = 0; i < want.size(); ++i) {
    if (static_cast<double>(got[i]) == want[i]) continue;  // also equal infinities
    const double error = std::abs(static_cast<double>(got[i]) - want[i]);
    if (std::isnan(error)) return {i, std::numeric_limits<double>::infinity()};
    if (error > w.error) w = {i, error};
  }
  return w;
}

// `got` may lose twice what `plain` loses against `truth` (or a few units in the last place of the
// largest value, where the plain formula was lucky).
template <class Real, class Plain, class Got>
testing::AssertionResult as_good_as(const Plain& plain, const Got& got,
                                    const std::vector<double>& truth) {
  if (static_cast<std::size_t>(got.size()) != truth.size())
    return testing::AssertionFailure() << got.size() << " values, want " << truth.size();
  double largest = 0;
  for (const double t : truth)
    if (std::isfinite(t)) largest = std::max(largest, std::abs(t));
  const double bound =
      2 * worst(plain, truth).error + 4 * std::numeric_limits<Real>::epsilon() * largest;
  const Worst w = worst(got, truth);
  if (w.error <= bound && std::isfinite(bound)) return testing::AssertionSuccess();
  return testing::AssertionFailure() << "at " << w.at << ": got " << got[w.at] << ", want "
                                     << truth[w.at] << ", off by " << w.error << " of " << bound;
}

// ||a - b|| / ||b||
template <class A, class B>
double relative_l2(const A& a, const B& b) {
  double difference = 0, norm = 0;
  for (std::size_t i = 0; i < static_cast<std::size_t>(b.size()); ++i) {
    const double d = static_cast<double>(a[i]) - static_cast<double>(b[i]);
    difference += d * d;
    norm += static_cast<double>(b[i]) * static_cast<double>(b[i]);
  }
  return norm > 0 ? std::sqrt(difference / norm) : std::sqrt(difference);
}

}  // namespace longstride::test
