// The formula of layer_norm.h, loop by loop, in any precision.
#pragma once

#include <cmath>

#include "ops/layer_norm/layer_norm.h"

namespace longstride::ops::ref {

template <class Real>
void layer_norm(const LayerNorm<Real>& op) {
  const std::int64_t C = op.x.cols;
  for (std::int64_t r = 0; r < op.x.rows; ++r) {
    const Real* const x = op.x.row(r);
    Real mean = 0, variance = 0;
    for (std::int64_t c = 0; c < C; ++c) mean += x[c];
    mean /= Real(C);
    for (std::int64_t c = 0; c < C; ++c) variance += (x[c] - mean) * (x[c] - mean);
    variance /= Real(C);
    const Real rstd = 1 / std::sqrt(variance + op.eps);

    for (std::int64_t c = 0; c < C; ++c)
      op.y.row(r)[c] = (x[c] - mean) * rstd * op.gain[c] + op.bias[c];
    if (!op.mean.empty()) op.mean[r] = mean, op.rstd[r] = rstd;
  }
}

template <class Real>
void layer_norm_backward(const LayerNormBackward<Real>& op) {
  const std::int64_t C = op.x.cols;
  for (std::int64_t r = 0; r < op.x.rows; ++r) {
    const Real *const x = op.x.row(r), *const dy = op.dy.row(r);
    const Real mean = op.mean[r], rstd = op.rstd[r];
    Real mean_g = 0, mean_gx = 0;
    for (std::int64_t c = 0; c < C; ++c) {
      const Real xhat = (x[c] - mean) * rstd, g = dy[c] * op.gain[c];
      mean_g += g;
      mean_gx += g * xhat;
      op.dgain[c] += dy[c] * xhat;
      op.dbias[c] += dy[c];
    }
    mean_g /= Real(C);
    mean_gx /= Real(C);
    for (std::int64_t c = 0; c < C; ++c) {
      const Real xhat = (x[c] - mean) * rstd, g = dy[c] * op.gain[c];
      op.dx.row(r)[c] += rstd * (g - mean_g - xhat * mean_gx);
    }
  }
}

}  // namespace longstride::ops::ref
