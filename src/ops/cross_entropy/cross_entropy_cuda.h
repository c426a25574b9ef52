// Softmax cross-entropy over 256 symbols on the GPU; formulas in cross_entropy.h.
#pragma once

#include <cstdint>

#include "device/cuda.h"
#include "tensor/bf16.h"
#include "tensor/fp16.h"
#include "tensor/tensor.h"

namespace longstride::ops::cuda {

// logits float [R, 256] contiguous, targets [R], nats [R], dlogits A [R, 256] or empty (may be
// logits where A is float): scale (softmax - onehot). `device_scale`, where set, is multiplied in
// (the loss scale of fp16, in device memory).
template <class A>
struct CrossEntropy {
  Matrix<const float> logits;
  const std::uint8_t* targets = nullptr;
  Vector<float> nats;
  Matrix<A> dlogits = {};
  float scale = 1;
  const double* device_scale = nullptr;
};
template <class A>
void cross_entropy(device::Stream stream, const CrossEntropy<A>& op);

// sum[0] (+)= sum of x in double, in a fixed order. partial: >= sum_partials() doubles.
std::int64_t sum_partials();
void sum(device::Stream stream, Vector<const float> x, double* partial, double* sum, bool add);

}  // namespace longstride::ops::cuda
