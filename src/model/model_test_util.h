// What the tests of the network share.
#pragma once

#include <cstdint>
#include <random>
#include <vector>

#include "longstride/config.h"
#include "model/parameters.h"
#include "tensor/tensor.h"

namespace longstride::test {

// Every weight random (an untrained network has a zero output layer, which hides everything).
template <class T>
std::vector<T> random_weights(const ModelConfig& m, unsigned seed, double deviation = 0.3) {
  const ParameterLayout layout(m);
  std::mt19937 rng(seed);
  std::normal_distribution<double> normal;
  std::vector<T> w(static_cast<std::size_t>(layout.extent));
  for (const auto& p : layout.tensors)
    for (std::int64_t e = 0; e < p.size; ++e)
      w[static_cast<std::size_t>(p.offset + e)] =
          static_cast<T>(p.constant + deviation * normal(rng));
  return w;
}

inline std::vector<std::uint8_t> random_tokens(std::int64_t n, unsigned seed) {
  std::mt19937 rng(seed);
  std::vector<std::uint8_t> t(static_cast<std::size_t>(n));
  for (auto& e : t) e = static_cast<std::uint8_t>(rng());
  return t;
}

template <class T>
Vector<const T> view(const std::vector<T>& v) {
  return {v.data(), static_cast<std::int64_t>(v.size())};
}

template <class T>
Vector<T> view(std::vector<T>& v) {
  return {v.data(), static_cast<std::int64_t>(v.size())};
}

}  // namespace longstride::test
