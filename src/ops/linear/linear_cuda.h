// Affine maps on the GPU, forward and backward, with what stands next to them fused in.
//
//   forward               y = x W + b
//   with activation       pre = x W + b,  y = act(pre)                 act(x) = x sigmoid(1.702 x)
//   input gradient        dx = dy W^T
//   through activation    dpre = (dy W^T) act'(pre),  y = act(pre)     y again, for dW of this map
//   weight gradient       dW (+)= x^T dy,  db (+)= sum_r dy[r]
//
// x [R, in], W [in, out], y [R, out]; rows of x, y, dx, dy may be part of wider rows (stride). All
// products are summed in float; A = float: no TF32. Strides and widths are multiples of 8 elements,
// addresses of 16 bytes, else the slow general path is taken. Same bits for the same shapes on the
// same card and library: algorithms are chosen by shape, never by timing.
#pragma once

#include <cstdint>
#include <memory>

#include "device/cuda.h"
#include "tensor/bf16.h"
#include "tensor/fp16.h"
#include "tensor/tensor.h"

namespace longstride::ops::cuda {

// Library handle, workspace and the algorithm of each shape seen. For one stream at a time. Shapes
// must be seen once before they are captured into a graph.
class LinearContext {
 public:
  LinearContext();
  ~LinearContext();
  static std::int64_t bytes();  // of device memory it takes

  struct State;
  State& state() { return *state_; }

 private:
  std::unique_ptr<State> state_;
};

template <class A, class Y = A>
struct Linear {
  Matrix<const A> x, weight;
  Vector<const float> bias;  // [out], or empty
  Matrix<Y> y;
};
// <float, float>, <bf16, bf16>, <fp16, fp16>, <bf16, float>, <fp16, float>
template <class A, class Y>
void linear(LinearContext& context, device::Stream stream, const Linear<A, Y>& op);

template <class A>
struct LinearActivation {
  Matrix<const A> x, weight;
  Vector<const float> bias;  // [out]
  Matrix<A> pre;             // empty: not wanted
  Matrix<A> y;               // likewise, if pre is wanted
};
template <class A>
void linear_activation(LinearContext& context, device::Stream stream,
                       const LinearActivation<A>& op);

template <class A>
struct LinearInputGradient {
  Matrix<const A> dy, weight;
  Matrix<A> dx;
};
template <class A>
void linear_input_gradient(LinearContext& context, device::Stream stream,
                           const LinearInputGradient<A>& op);

template <class A>
struct LinearActivationGradient {
  Matrix<const A> dy, weight;  // of the map behind the activation: [R, d], [ff, d]
  Matrix<const A> pre;         // [R, ff]
  Matrix<A> dpre;              // [R, ff], may be pre
  Matrix<A> y;                 // [R, ff]
};
template <class A>
void linear_activation_gradient(LinearContext& context, device::Stream stream,
                                const LinearActivationGradient<A>& op);

template <class A>
struct LinearWeightGradient {
  Matrix<const A> x, dy;
  Matrix<float> dweight;  // [in, out], contiguous
  Vector<float> dbias;    // [out], or empty: not wanted
  bool add = false;
};
template <class A>
void linear_weight_gradient(LinearContext& context, device::Stream stream,
                            const LinearWeightGradient<A>& op);

}  // namespace longstride::ops::cuda
