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

// How a part of a row ends: O = out / sum, L = max + log(sum), stored by the first part and merged
// by the others (attention.h). A part without keys changes nothing, or gives O = 0, L = -inf.
//   O = before O + here out where it merges, O = here out where it does not
template <class T>
struct RowEnd {
  T before = 0, here = 0;
  bool merges = false, unchanged = false;
};

template <class T>
RowEnd<T> end_of_row(T max, T sum, bool first, T& lse) {
  if (first) lse = kNoKeys<T>;
  if (sum == 0) return {.unchanged = !first};
  const T own = max + std::log(sum), inverse = 1 / sum;
  if (lse == kNoKeys<T>) {
    lse = own;
    return {.here = inverse};
  }
  const T top = own > lse ? own : lse;
  const T before = std::exp(lse - top), here = std::exp(own - top), total = before + here;
  lse = top + std::log(total);
  return {before / total, here / total * inverse, true};
}

template <class T>
void finish_row(const RowState<T>& state, bool first, std::int64_t v_width, T* out, T& lse) {
  const RowEnd<T> end = end_of_row(state.max, state.sum, first, lse);
  if (end.unchanged) return;
  for (std::int64_t c = 0; c < v_width; ++c)
    out[c] = end.merges ? end.before * out[c] + end.here * state.out[c] : end.here * state.out[c];
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
