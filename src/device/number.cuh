// Storage types in kernels: bf16 and fp16 of tensor/ are the bits of CUDA's own types.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "tensor/bf16.h"
#include "tensor/fp16.h"

namespace longstride::device {

__device__ inline float to_float(float x) { return x; }
__device__ inline float to_float(bf16 x) {
  return __uint_as_float(static_cast<unsigned>(x.bits) << 16);
}
__device__ inline float to_float(fp16 x) { return __half2float(__ushort_as_half(x.bits)); }

// To nearest even.
template <class A>
__device__ A from_float(float x);
template <>
__device__ inline float from_float<float>(float x) {
  return x;
}
template <>
__device__ inline bf16 from_float<bf16>(float x) {
  bf16 y;
  y.bits = __bfloat16_as_ushort(__float2bfloat16_rn(x));
  return y;
}
template <>
__device__ inline fp16 from_float<fp16>(float x) {
  fp16 y;
  y.bits = __half_as_ushort(__float2half_rn(x));
  return y;
}

// N values moved as one load or store of N * sizeof(A) <= 16 bytes; the address is a multiple of
// it.
template <class A, int N>
struct alignas(N * sizeof(A)) Pack {
  A at[N];
};
template <int N, class A>
__device__ Pack<A, N> load(const A* from) {
  return *reinterpret_cast<const Pack<A, N>*>(from);
}
template <int N, class A>
__device__ void store(A* to, const Pack<A, N>& values) {
  *reinterpret_cast<Pack<A, N>*>(to) = values;
}

}  // namespace longstride::device
