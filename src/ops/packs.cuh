// Packs of storage types as floats and back; bf16 two at a time, a word and an instruction for
// both.
#pragma once

#include <bit>
#include <type_traits>

#include "device/number.cuh"

namespace longstride::ops::cuda {

template <class A, int N>
__device__ void unpack(const device::Pack<A, N>& pack, float (&x)[N]) {
  if constexpr (std::is_same_v<A, bf16> && N % 2 == 0) {
    const auto words = std::bit_cast<device::Pack<unsigned, N / 2>>(pack);
#pragma unroll
    for (int i = 0; i < N / 2; ++i) {
      x[2 * i] = __uint_as_float(words.at[i] << 16);
      x[2 * i + 1] = __uint_as_float(words.at[i] & 0xffff0000u);
    }
  } else {
#pragma unroll
    for (int i = 0; i < N; ++i) x[i] = device::to_float(pack.at[i]);
  }
}

template <class A, int N>
__device__ device::Pack<A, N> packed(const float (&x)[N]) {
  device::Pack<A, N> pack;
  if constexpr (std::is_same_v<A, bf16> && N % 2 == 0) {
    device::Pack<unsigned, N / 2> words;
#pragma unroll
    for (int i = 0; i < N / 2; ++i) {
      const __nv_bfloat162 pair = __floats2bfloat162_rn(x[2 * i], x[2 * i + 1]);
      words.at[i] = *reinterpret_cast<const unsigned*>(&pair);
    }
    pack = std::bit_cast<device::Pack<A, N>>(words);
  } else {
#pragma unroll
    for (int i = 0; i < N; ++i) pack.at[i] = device::from_float<A>(x[i]);
  }
  return pack;
}

}  // namespace longstride::ops::cuda
