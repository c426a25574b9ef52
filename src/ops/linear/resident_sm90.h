// The products of resident_sm90.cuh, called from the host.
#pragma once

#include <cuda.h>

#include <cstdint>

#include "device/cuda.h"

namespace longstride::ops::cuda::resident {

enum class End {
  kRound,               // first = D + bias
  kFloat,               // sums = D + bias
  kActivation,          // first = D + bias, second = act(first)
  kActivationGradient,  // first = D act'(pre), second = act(pre)
};

template <class A>
struct Ends {
  std::int64_t rows = 0;
  int columns = 0;
  const float* bias = nullptr;  // or none
  const A* pre = nullptr;
  A *first = nullptr, *second = nullptr;  // first of kActivation: or none
  float* sums = nullptr;
  std::int64_t pre_stride = 0, first_stride = 0, second_stride = 0;  // first: also of sums
};

// kAcross: B = W, else B = W^T (kRound and kActivationGradient). deep: K / 64, rounded up.
// Instances: bf16 and fp16.
template <class A, bool kAcross>
void launch(device::Stream stream, End end, const CUtensorMap& x, const CUtensorMap& b,
            const Ends<A>& ends, int deep);

}  // namespace longstride::ops::cuda::resident
