// The formula of residual.h, in any precision.
#pragma once

#include <cmath>

#include "base/rng.h"
#include "ops/residual/residual.h"

namespace longstride::ops::ref {

// A word below this drops its element. p just under 1 is capped: one word in 2^32 still keeps.
inline std::uint32_t dropout_threshold(double p) {
  return static_cast<std::uint32_t>(std::fmin(std::round(p * 0x1.0p32), 0x1.0p32 - 1));
}

// The element index counts from the first row of the step, not of this call.
inline bool dropout_keeps(const Dropout& dropout, std::int64_t index) {
  const auto i = static_cast<std::uint64_t>(index);
  const Random4 words = random4(dropout.seed, Stream::dropout, dropout.step, i / 4, dropout.lane);
  return words[i % 4] >= dropout_threshold(dropout.p);
}

template <class Real>
Real dropout_element(const Dropout& dropout, std::int64_t index, Real x) {
  if (dropout.p == 0) return x;
  return dropout_keeps(dropout, index) ? x * Real(1 / (1 - dropout.p)) : Real(0);
}

template <class Real>
void residual(const Residual<Real>& op) {
  const std::int64_t C = op.x.cols, first = op.dropout.first_row * C;
  for (std::int64_t i = 0; i < op.x.rows * C; ++i)
    op.y.data[i] = op.h.data[i] + dropout_element(op.dropout, first + i, op.x.data[i]);
}

template <class Real>
void residual_backward(const ResidualBackward<Real>& op) {
  const std::int64_t C = op.dy.cols, first = op.dropout.first_row * C;
  for (std::int64_t i = 0; i < op.dy.rows * C; ++i)
    op.dx.data[i] = dropout_element(op.dropout, first + i, op.dy.data[i]);
}

}  // namespace longstride::ops::ref
