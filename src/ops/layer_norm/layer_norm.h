// Layer norm over the columns of each row.
//
//   y[r,c] = (x[r,c] - mean[r]) * rstd[r] * gain[c] + bias[c]
//   mean[r] = sum_c x[r,c] / C        rstd[r] = 1 / sqrt(sum_c (x[r,c] - mean[r])^2 / C + eps)
//
//   xhat = (x - mean) rstd     g = dy gain
//   dx[r,c] += rstd (g - mean_c(g) - xhat mean_c(g xhat))
//   dgain[c] += sum_r dy xhat      dbias[c] += sum_r dy
//
// A row's bits depend on that row only. dgain, dbias: rows are summed in fixed pieces, in order.
#pragma once

#include "tensor/bf16.h"
#include "tensor/tensor.h"

namespace longstride::ops {

template <class T, class A = T>
struct LayerNorm {
  Matrix<const T> x;           // [R, C]
  Vector<const T> gain, bias;  // [C]
  Matrix<A> y;                 // [R, C], may be x
  Vector<T> mean, rstd;        // [R], kept for backward; both empty: not wanted
  T eps = T(1e-5);
};

void layer_norm(const LayerNorm<float>& op);
void layer_norm(const LayerNorm<double>& op);
void layer_norm(const LayerNorm<float, bf16>& op);

template <class T>
struct LayerNormBackward {
  Matrix<const T> x;           // [R, C]
  Vector<const T> gain;        // [C]
  Vector<const T> mean, rstd;  // [R]
  Matrix<const T> dy;          // [R, C]
  Matrix<T> dx;                // [R, C], +=  (the residual path is already in it)
  Vector<T> dgain, dbias;      // [C], +=
};

void layer_norm_backward(const LayerNormBackward<float>& op);
void layer_norm_backward(const LayerNormBackward<double>& op);

namespace cpu {  // shapes are checked
void layer_norm(const LayerNorm<float>& op);
void layer_norm(const LayerNorm<float, bf16>& op);
void layer_norm_backward(const LayerNormBackward<float>& op);
}  // namespace cpu

}  // namespace longstride::ops
