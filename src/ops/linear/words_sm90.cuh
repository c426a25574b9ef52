// Two neighbouring numbers of 2 bytes in a register, and how four threads trade them.
#pragma once

#include <cuda_fp16.h>

#include <cstdint>
#include <type_traits>

#include "tensor/bf16.h"
#include "tensor/fp16.h"

namespace longstride::ops::cuda {

// To nearest even.
template <class A>
__device__ inline std::uint32_t pack(float low, float high) {
  std::uint32_t word;
  if constexpr (std::is_same_v<A, bf16>)
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(word) : "f"(high), "f"(low));
  else
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(word) : "f"(high), "f"(low));
  return word;
}

template <class A>
__device__ inline float2 unpack(std::uint32_t word) {
  if constexpr (std::is_same_v<A, bf16>)
    return {__uint_as_float(word << 16), __uint_as_float(word & 0xffff0000u)};
  else
    return __half22float2(__half2_raw{static_cast<unsigned short>(word & 0xffffu),
                                      static_cast<unsigned short>(word >> 16)});
}

// Among the threads u = 0..3 of four neighbours: word[g] of thread u becomes what was word[u] of
// thread g. Called by whole warps.
__device__ inline void transpose(std::uint32_t (&word)[4], int lane) {
  const bool odd = (lane & 1) != 0, upper = (lane & 2) != 0;
  const auto trade = [](std::uint32_t& low, std::uint32_t& high, bool second, int with) {
    const std::uint32_t got = __shfl_xor_sync(0xffffffffu, second ? low : high, with);
    (second ? low : high) = got;
  };
  trade(word[0], word[1], odd, 1);
  trade(word[2], word[3], odd, 1);
  trade(word[0], word[2], upper, 2);
  trade(word[1], word[3], upper, 2);
}

// sigmoid(1.702 x), to 2 units in the last place of float.
__device__ inline float gate(float x) {
  float power, s;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(power) : "f"(-1.702f * 1.4426950408889634f * x));
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(s) : "f"(1.0f + power));
  return s;
}

}  // namespace longstride::ops::cuda
