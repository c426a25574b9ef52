// One row of attention, step by step: what a row's bits are made of.
//
// State of a row within a part: max, sum = sum_j e^{s_j - max}, out = sum_j e^{s_j - max} v_j over
// the keys so far. A chunk of keys is absorbed by: raise max once, scale sum and out by
// e^{old - new}, add the keys in order. A part ends in finish_row(). The vector kernels do the
// same operations per element, in the same order.
#pragma once

#include <cmath>
#include <cstdint>
#include <limits>

namespace longstride::ops {

template <class T>
inline constexpr T kNoKeys = -std::numeric_limits<T>::infinity();

template <class T>
struct RowState {
  T max = kNoKeys<T>, sum = 0;
  T* out = nullptr;  // [v_width], not divided by sum
};

// Ends a part of a row: O = out / sum, L = max + log(sum), stored by the first part and merged by
// the others (attention.h). A part without keys changes nothing, or gives O = 0, L = -inf.
template <class T>
void finish_row(const RowState<T>& state, bool first, std::int64_t v_width, T* out, T& lse) {
  if (first) lse = kNoKeys<T>;
  if (state.sum == 0) {
    for (std::int64_t c = 0; first && c < v_width; ++c) out[c] = 0;
    return;
  }
  const T own = state.max + std::log(state.sum), inverse = 1 / state.sum;
  if (lse == kNoKeys<T>) {
    lse = own;
    for (std::int64_t c = 0; c < v_width; ++c) out[c] = state.out[c] * inverse;
    return;
  }
  const T top = own > lse ? own : lse;
  const T before = std::exp(lse - top), here = std::exp(own - top), total = before + here;
  const T keep = before / total, add = here / total * inverse;
  lse = top + std::log(total);
  for (std::int64_t c = 0; c < v_width; ++c) out[c] = keep * out[c] + add * state.out[c];
}

// The plain row step, used in float64. scores: room for `count` values.
template <class T>
void absorb(RowState<T>& state, const T* q, std::int64_t qk_width, std::int64_t v_width, T scale,
            int count, const T* const* k, const T* const* v, T* scores) {
  T max = state.max;
  for (int j = 0; j < count; ++j) {
    T dot = 0;
    for (std::int64_t c = 0; c < qk_width; ++c) dot += q[c] * k[j][c];
    scores[j] = dot * scale;
    max = scores[j] > max ? scores[j] : max;
  }
  if (max != state.max) {
    const T shrink = std::exp(state.max - max);
    state.sum *= shrink;
    for (std::int64_t c = 0; c < v_width; ++c) state.out[c] *= shrink;
    state.max = max;
  }
  for (int j = 0; j < count; ++j) {
    const T p = std::exp(scores[j] - max);
    state.sum += p;
    for (std::int64_t c = 0; c < v_width; ++c) state.out[c] += p * v[j][c];
  }
}

}  // namespace longstride::ops
