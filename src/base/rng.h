// Counter-based randomness: every random number is a function of (seed, stream, step, index), so
// dropout, data order and sampling need no state, do not depend on threads, and resume exactly.
#pragma once

#include <Random123/philox.h>

#include <array>
#include <cmath>
#include <cstdint>

namespace longstride {

enum class Stream : std::uint32_t {
  init = 1,     // step: index of the tensor, index: element
  dropout = 2,  // step: training step, lane: layer * 2 + branch, index: element
  data = 3,     // step: epoch, index: window
  sample = 4,   // step: which sample, index: position
  pattern = 5,  // random(r, seed): step 0, index: query block
  test = 6,
};

using Random4 = std::array<std::uint32_t, 4>;

// Philox4x32-10. `lane` tells apart users of one stream in one step.
inline Random4 random4(std::uint64_t seed, Stream stream, std::uint64_t step, std::uint64_t index,
                       std::uint32_t lane = 0) {
  using Philox = r123::Philox4x32;
  // The seed is the key; the counter holds (index low, index high, step low, rest), and the high
  // part of the step, the lane and the stream are mixed so that no two callers share a counter
  // while step < 2^40 and lane < 2^20.
  const Philox::ctr_type counter = {
      {static_cast<std::uint32_t>(index),
       static_cast<std::uint32_t>(index >> 32) ^ (static_cast<std::uint32_t>(step >> 32) << 24),
       static_cast<std::uint32_t>(step), (static_cast<std::uint32_t>(stream) << 20) ^ lane}};
  const Philox::key_type key = {
      {static_cast<std::uint32_t>(seed), static_cast<std::uint32_t>(seed >> 32)}};
  const auto out = Philox()(counter, key);
  return {out[0], out[1], out[2], out[3]};
}

// [0, 1), 53 bits.
inline double uniform(std::uint32_t high, std::uint32_t low) {
  const std::uint64_t bits = (static_cast<std::uint64_t>(high) << 32 | low) >> 11;
  return static_cast<double>(bits) * 0x1.0p-53;
}

// Two independent standard normals (Box-Muller) out of one Random4.
inline std::array<double, 2> normal2(const Random4& r) {
  constexpr double kTau = 6.283185307179586476925286766559;
  const double radius = std::sqrt(-2.0 * std::log1p(-uniform(r[0], r[1])));
  const double angle = kTau * uniform(r[2], r[3]);
  return {radius * std::cos(angle), radius * std::sin(angle)};
}

}  // namespace longstride
