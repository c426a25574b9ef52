// The draws of dropout in kernels: the words of random4 (base/rng.h) for four elements at a time.
// 20 wide multiplications and as many three-way xors a draw; the keys are the same for all threads.
#pragma once

#include <cstdint>

#include "base/rng.h"
#include "ops/residual_norm/draws.h"

namespace longstride::ops::cuda {

// The counter words that a kernel's draws share.
struct DrawKey {
  std::uint32_t high, step, lane;
  __device__ explicit DrawKey(const Draws& draws) {
    const std::uint64_t at =
        draws.device_step == nullptr ? draws.step : static_cast<std::uint64_t>(*draws.device_step);
    high = static_cast<std::uint32_t>(at >> 32) << 24;
    step = static_cast<std::uint32_t>(at);
    lane = static_cast<std::uint32_t>(longstride::Stream::dropout) << 20 ^ draws.lane;
  }
};

// Philox4x32-10 (Salmon et al. 2011): word[w] of the draw belongs to element 4 draw + w.
__device__ inline uint4 draw4(const Draws& draws, const DrawKey& key, std::int64_t draw) {
  const auto index = static_cast<std::uint64_t>(draw);
  uint4 x = {static_cast<std::uint32_t>(index), static_cast<std::uint32_t>(index >> 32) ^ key.high,
             key.step, key.lane};
  std::uint32_t k0 = draws.key0, k1 = draws.key1;
#pragma unroll
  for (int round = 0; round < 10; ++round) {
    const std::uint64_t p = std::uint64_t{0xD2511F53u} * x.x, q = std::uint64_t{0xCD9E8D57u} * x.z;
    x = {static_cast<std::uint32_t>(q >> 32) ^ x.y ^ k0, static_cast<std::uint32_t>(q),
         static_cast<std::uint32_t>(p >> 32) ^ x.w ^ k1, static_cast<std::uint32_t>(p)};
    k0 += 0x9E3779B9u;
    k1 += 0xBB67AE85u;
  }
  return x;
}

// values = dropout(values), the N elements from `element` on; N 4 (element a multiple of it) or 1.
template <int N>
__device__ void drop(const Draws& draws, const DrawKey& key, std::int64_t element,
                     float (&values)[N]) {
  static_assert(N == 4 || N == 1);
  const uint4 words = draw4(draws, key, element / 4);
  const auto kept = [&](std::uint32_t word, float value) {
    return word >= draws.threshold ? __fmul_rn(draws.scale, value) : 0.0f;
  };
  if constexpr (N == 4) {
    values[0] = kept(words.x, values[0]);
    values[1] = kept(words.y, values[1]);
    values[2] = kept(words.z, values[2]);
    values[3] = kept(words.w, values[3]);
  } else {
    const auto place = element % 4;
    values[0] = kept(
        place < 2 ? (place == 0 ? words.x : words.y) : (place == 2 ? words.z : words.w), values[0]);
  }
}

}  // namespace longstride::ops::cuda
