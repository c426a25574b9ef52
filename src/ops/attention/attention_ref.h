// The formulas of attention.h over the predicate HeadPattern::attends(i, j), pair by pair, in any
// precision. Knows nothing of parts and plans.
#pragma once

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "ops/attention/attention.h"

namespace longstride::ops::ref {

// A(i) of head h.
inline std::vector<Position> attended(const AttentionPlan& plan, std::int64_t h, Position i) {
  const auto kind = static_cast<std::size_t>(plan.kind_of_head[static_cast<std::size_t>(h)]);
  std::vector<Position> keys;
  for (Position j = 0; j <= i; ++j)
    if (plan.patterns[kind].attends(i, j)) keys.push_back(j);
  return keys;
}

template <class Real>
Real dot(const Real* a, const Real* b, std::int64_t width) {
  Real sum = 0;
  for (std::int64_t c = 0; c < width; ++c) sum += a[c] * b[c];
  return sum;
}

template <class Real>
void attention_row(const Attention<Real>& op, std::int64_t b, std::int64_t h, Position i) {
  Real* const out = op.out.at(b, i, h);
  Real& lse = op.lse[(b * op.q.heads + h) * op.q.length + i];
  std::fill_n(out, op.v.width, Real(0));
  lse = -std::numeric_limits<Real>::infinity();
  const auto keys = attended(*op.plan, h, i);
  if (keys.empty()) return;

  std::vector<Real> s;
  for (const Position j : keys)
    s.push_back(op.scale * dot(op.q.at(b, i, h), op.k.at(b, j, h), op.q.width));
  const Real max = *std::max_element(s.begin(), s.end());
  Real sum = 0;
  for (Real& e : s) sum += e = std::exp(e - max);
  lse = max + std::log(sum);
  for (std::size_t n = 0; n < keys.size(); ++n)
    for (std::int64_t c = 0; c < op.v.width; ++c) out[c] += s[n] / sum * op.v.at(b, keys[n], h)[c];
}

template <class Real>
void attention(const Attention<Real>& op) {
  for (std::int64_t b = 0; b < op.q.batch; ++b)
    for (std::int64_t h = 0; h < op.q.heads; ++h)
      for (Position i = 0; i < op.q.length; ++i) attention_row(op, b, h, i);
}

template <class Real>
void attention_backward_row(const AttentionBackward<Real>& op, std::int64_t b, std::int64_t h,
                            Position i) {
  const Real *const q = op.q.at(b, i, h), *const dout = op.dout.at(b, i, h);
  const Real lse = op.lse[(b * op.q.heads + h) * op.q.length + i];
  const Real mean = dot(dout, op.out.at(b, i, h), op.v.width);
  for (const Position j : attended(*op.plan, h, i)) {
    const Real *const k = op.k.at(b, j, h), *const v = op.v.at(b, j, h);
    const Real p = std::exp(op.scale * dot(q, k, op.q.width) - lse);
    const Real ds = op.scale * p * (dot(dout, v, op.v.width) - mean);
    for (std::int64_t c = 0; c < op.v.width; ++c) op.dv.at(b, j, h)[c] += p * dout[c];
    for (std::int64_t c = 0; c < op.q.width; ++c) {
      op.dq.at(b, i, h)[c] += ds * k[c];
      op.dk.at(b, j, h)[c] += ds * q[c];
    }
  }
}

template <class Real>
void attention_backward(const AttentionBackward<Real>& op) {
  for (std::int64_t b = 0; b < op.q.batch; ++b)
    for (std::int64_t h = 0; h < op.q.heads; ++h) {
      for (Position i = 0; i < op.q.length; ++i) {
        std::fill_n(op.dq.at(b, i, h), op.q.width, Real(0));
        std::fill_n(op.dk.at(b, i, h), op.q.width, Real(0));
        std::fill_n(op.dv.at(b, i, h), op.v.width, Real(0));
      }
      for (Position i = 0; i < op.q.length; ++i) attention_backward_row(op, b, h, i);
    }
}

}  // namespace longstride::ops::ref
