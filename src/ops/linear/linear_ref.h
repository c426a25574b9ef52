// The formula of linear.h, loop by loop, in any precision.
#pragma once

#include "ops/linear/linear.h"

namespace longstride::ops::ref {

template <class Real>
void linear_forward(const Linear<Real>& op) {
  const std::int64_t K = op.x.cols, N = op.weight.cols;
  for (std::int64_t r = 0; r < op.x.rows; ++r) {
    Real* const y = op.y.row(r);
    for (std::int64_t n = 0; n < N; ++n) y[n] = op.bias.empty() ? Real(0) : op.bias[n];
    for (std::int64_t k = 0; k < K; ++k)
      for (std::int64_t n = 0; n < N; ++n) y[n] += op.x.row(r)[k] * op.weight.row(k)[n];
  }
}

template <class Real>
void linear_backward(const LinearBackward<Real>& op) {
  const std::int64_t K = op.x.cols, N = op.dy.cols;
  for (std::int64_t r = 0; r < op.x.rows; ++r) {
    const Real *const x = op.x.row(r), *const dy = op.dy.row(r);
    for (std::int64_t k = 0; k < K; ++k) {
      Real sum = 0;
      for (std::int64_t n = 0; n < N; ++n) {
        sum += dy[n] * op.weight.row(k)[n];
        op.dweight.row(k)[n] += x[k] * dy[n];
      }
      if (!op.dx.empty()) op.dx.row(r)[k] = op.add_to_dx ? op.dx.row(r)[k] + sum : sum;
    }
    if (op.dbias.empty()) continue;
    for (std::int64_t n = 0; n < N; ++n) op.dbias[n] += dy[n];
  }
}

}  // namespace longstride::ops::ref
