// The formula of adamw.h, in any precision.
#pragma once

#include <algorithm>
#include <cmath>

#include "ops/adamw/adamw.h"

namespace longstride::ops {

// Calls visit(begin, end, decay) for the runs of [begin, end) that share their weight decay: the
// factor of the step, or 0 outside the decayed ranges.
template <class T, class Visit>
void for_decay_runs(const AdamW<T>& op, std::int64_t begin, std::int64_t end, const Visit& visit) {
  if (op.decayed != nullptr) {
    const auto behind = [](std::int64_t at, const DecayRange& range) { return at < range.end; };
    auto range = std::upper_bound(op.decayed->begin(), op.decayed->end(), begin, behind);
    for (; range != op.decayed->end() && range->begin < end; ++range) {
      if (begin < range->begin) visit(begin, range->begin, 0.0);
      begin = std::max(begin, range->begin);
      const std::int64_t stop = std::min(end, range->end);
      if (begin < stop) visit(begin, stop, op.decay);
      begin = stop;
    }
  }
  if (begin < end) visit(begin, end, 0.0);
}

namespace ref {

template <class Real>
void adamw(const AdamW<Real>& op) {
  const auto t = static_cast<double>(op.step);
  const Real m_correction = Real(1 - std::pow(op.beta1, t));
  const Real v_correction = Real(1 - std::pow(op.beta2, t));
  for_decay_runs(op, 0, op.weights.size, [&](std::int64_t begin, std::int64_t end, double decay) {
    for (std::int64_t i = begin; i < end; ++i) {
      const Real g = op.grad[i] * Real(op.grad_scale);
      const Real m = Real(op.beta1) * op.m[i] + Real(1 - op.beta1) * g;
      const Real v = Real(op.beta2) * op.v[i] + Real(1 - op.beta2) * g * g;
      const Real step = (m / m_correction) / (std::sqrt(v / v_correction) + Real(op.eps));
      const Real w = op.weights[i] - Real(op.lr) * (step + Real(decay) * op.weights[i]);
      op.m[i] = m;
      op.v[i] = v;
      op.weights[i] = w;
      if (!op.average.empty()) op.average[i] += Real(1 - op.ema) * (w - op.average[i]);
    }
  });
}

template <class Real>
double global_norm(Vector<const Real> x) {
  double sum = 0;
  for (std::int64_t i = 0; i < x.size; ++i) {
    const auto value = static_cast<double>(x[i]);
    sum += value * value;
  }
  return std::sqrt(sum);
}

}  // namespace ref
}  // namespace longstride::ops
