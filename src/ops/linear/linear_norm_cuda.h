// Maps whose rows end in what is done to the residual stream, as one kernel where the card has one
// (Hopper): ops/linear and ops/residual_norm together, without the branch (or the gradient of the
// norm's output) in between, which is not rounded to A then.
//
//   forward   h += dropout(x W + b),  rstd, xhat = norm of the row of h
//   backward  dxhat = dy W^T,  dh += the norm's gradient of it,  dbranch = dropout'(dh)
#pragma once

#include <cstdint>

#include "device/cuda.h"
#include "ops/residual/residual.h"
#include "tensor/bf16.h"
#include "tensor/fp16.h"
#include "tensor/tensor.h"

namespace longstride::ops::cuda {

// Whether the calls below are to be had for rows of `width` and sums of `inner` terms, and gain.
template <class A>
bool ends_in_norm(std::int64_t width, std::int64_t inner);

template <class A>
struct LinearResidualNorm {
  Matrix<const A> x = {}, weight = {};  // [R, in], [in, d]; both empty: the norm of h alone, with
  Vector<const float> bias = {};        // the bits that its xhat and rstd had; [d], or empty
  Matrix<float> h;                      // [R, d], in place
  Matrix<A> xhat;                       // [R, d]
  Vector<float> rstd = {};              // [R], or empty: not wanted
  Dropout dropout = {};
  float eps = 1e-5f;
  const std::int64_t* device_step = nullptr;  // as of ResidualNorm
};
template <class A>
void linear_residual_norm(device::Stream stream, const LinearResidualNorm<A>& op);

template <class A>
struct LinearNormBackward {
  Matrix<const A> dy, weight;  // [R, out], [d, out]
  Matrix<const A> xhat;        // [R, d]
  Vector<const float> rstd;    // [R]
  Matrix<float> dh;            // [R, d], in place
  Matrix<A> dbranch = {};      // [R, d], or empty: not wanted
  Dropout dropout = {};
  const std::int64_t* device_step = nullptr;
};
template <class A>
void linear_norm_backward(device::Stream stream, const LinearNormBackward<A>& op);

}  // namespace longstride::ops::cuda
