// The end of a residual branch and the norm that follows, in one pass over the residual stream;
// gain and bias of the norm are folded into the weights behind it (ops/fold).
//
//   forward   h += dropout(branch)
//             mean = sum_c h / C    rstd = 1 / sqrt(sum_c (h - mean)^2 / C + eps)
//             xhat = (h - mean) rstd
//   backward  dh = (add ? dh : 0) + rstd (dxhat - sum_c dxhat / C - xhat sum_c dxhat xhat / C)
//             dbranch = dropout'(dh)
//
// Dropout is that of ops/residual (same draws on CPU and GPU). Needs neither h nor mean in
// backward: xhat is kept. Bytes a row: forward C (4 + 4 + 2 sizeof(A)), backward C (8 + 3
// sizeof(A)); bound by memory. C is at most 4096; xhat may be branch, dbranch may be dxhat or xhat.
#pragma once

#include "device/cuda.h"
#include "ops/residual/residual.h"
#include "tensor/bf16.h"
#include "tensor/fp16.h"
#include "tensor/tensor.h"

namespace longstride::ops::cuda {

template <class A>
struct ResidualNorm {
  Matrix<float> h;              // [R, C], in place
  Matrix<const A> branch = {};  // [R, C], or empty: the norm alone
  Matrix<A> xhat = {};          // [R, C]; empty: the residual alone
  Vector<float> rstd = {};      // [R], empty: not wanted
  Dropout dropout = {};
  float eps = 1e-5f;
  // The seed, step and first row of `dropout` may change from launch to launch of one graph: where
  // this is set, step is *device_step, in device memory.
  const std::int64_t* device_step = nullptr;
};
template <class A>
void residual_norm(device::Stream stream, const ResidualNorm<A>& op);

template <class A>
struct ResidualNormBackward {
  Matrix<const A> dxhat, xhat;  // [R, C]
  Vector<const float> rstd;     // [R]
  Matrix<float> dh;             // [R, C]
  bool add = true;
  Matrix<A> dbranch = {};  // [R, C], or empty: not wanted
  Dropout dropout = {};
  const std::int64_t* device_step = nullptr;
};
template <class A>
void residual_norm_backward(device::Stream stream, const ResidualNormBackward<A>& op);

}  // namespace longstride::ops::cuda
