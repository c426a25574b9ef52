// The formula of cross_entropy.h, in any precision.
#pragma once

#include <algorithm>
#include <cmath>

#include "ops/cross_entropy/cross_entropy.h"

namespace longstride::ops::ref {

template <class Real>
void cross_entropy(const CrossEntropy<Real>& op) {
  const std::int64_t V = op.logits.cols;
  for (std::int64_t r = 0; r < op.logits.rows; ++r) {
    const Real* const x = op.logits.row(r);
    const std::uint8_t target = op.targets[r];
    const Real largest = *std::max_element(x, x + V);
    Real sum = 0;
    for (std::int64_t v = 0; v < V; ++v) sum += std::exp(x[v] - largest);
    op.nats[r] = std::log(sum) - (x[target] - largest);
    if (op.dlogits.empty()) continue;

    Real* const dx = op.dlogits.row(r);
    for (std::int64_t v = 0; v < V; ++v) {
      const Real p = std::exp(x[v] - largest) / sum;
      dx[v] = op.scale * (v == target ? p - 1 : p);
    }
  }
}

}  // namespace longstride::ops::ref
