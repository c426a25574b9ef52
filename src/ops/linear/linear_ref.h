// The formula of linear.h, loop by loop, in any precision.
#pragma once

#include "ops/linear/linear.h"

namespace longstride::ops::ref {

template <class Real>
void linear_forward(const Linear<Real>& op) {
  for (std::int64_t r = 0; r < op.x.rows; ++r)
    for (std::int64_t n = 0; n < op.weight.cols; ++n) {
      Real sum = op.bias.empty() ? Real(0) : op.bias[n];
      for (std::int64_t k = 0; k < op.x.cols; ++k) sum += op.x.row(r)[k] * op.weight.row(k)[n];
      op.y.row(r)[n] = sum;
    }
}

template <class Real>
void linear_backward(const LinearBackward<Real>& op) {
  const std::int64_t R = op.x.rows, K = op.x.cols, N = op.dy.cols;
  if (!op.dx.empty())
    for (std::int64_t r = 0; r < R; ++r)
      for (std::int64_t k = 0; k < K; ++k) {
        Real sum = op.add_to_dx ? op.dx.row(r)[k] : Real(0);
        for (std::int64_t n = 0; n < N; ++n) sum += op.dy.row(r)[n] * op.weight.row(k)[n];
        op.dx.row(r)[k] = sum;
      }
  for (std::int64_t k = 0; k < K; ++k)
    for (std::int64_t n = 0; n < N; ++n) {
      Real sum = op.dweight.row(k)[n];
      for (std::int64_t r = 0; r < R; ++r) sum += op.x.row(r)[k] * op.dy.row(r)[n];
      op.dweight.row(k)[n] = sum;
    }
  if (op.dbias.empty()) return;
  for (std::int64_t n = 0; n < N; ++n)
    for (std::int64_t r = 0; r < R; ++r) op.dbias[n] += op.dy.row(r)[n];
}

}  // namespace longstride::ops::ref
