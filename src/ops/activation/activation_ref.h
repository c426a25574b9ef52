// The formula of activation.h, in any precision.
#pragma once

#include <cmath>

#include "ops/activation/activation.h"

namespace longstride::ops::ref {

template <class Real>
Real activation_sigmoid(Real x) {
  return 1 / (1 + std::exp(Real(-1.702) * x));
}

template <class Real>
void activation(const Activation<Real>& op) {
  for (std::int64_t i = 0; i < op.x.size; ++i) op.y[i] = op.x[i] * activation_sigmoid(op.x[i]);
}

template <class Real>
void activation_backward(const ActivationBackward<Real>& op) {
  for (std::int64_t i = 0; i < op.x.size; ++i) {
    const Real x = op.x[i], s = activation_sigmoid(x);
    op.dx[i] = op.dy[i] * s * (1 + Real(1.702) * x * (1 - s));
  }
}

}  // namespace longstride::ops::ref
