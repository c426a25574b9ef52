// AdamW over one flat array of all parameters, with the moving average of the weights.
//
//   g = grad * clip       clip = min(1, max_norm / norm)       norm = sqrt(sum grad^2)
//   m = b1 m + (1-b1) g        v = b2 v + (1-b2) g^2
//   w -= lr * ( (m / (1-b1^t)) / (sqrt(v / (1-b2^t)) + eps) + decay * w )     decay only where told
//   average += (1 - ema) (w - average)
//
// facts.md writes the released form, lr_t m / (sqrt(v) + eps) with the bias correction inside lr_t,
// which differs in where eps is added; ours is the published AdamW.
// The sum of squares runs over fixed pieces in double, added in order: same bits for any threads.
#pragma once

#include <cstdint>
#include <vector>

#include "tensor/tensor.h"

namespace longstride::ops {

// Elements [begin, end) of the flat array take part in weight decay.
struct DecayRange {
  std::int64_t begin, end;
};

template <class T>
struct AdamW {
  Vector<T> weights, m, v;
  Vector<T> average;  // empty: no moving average
  Vector<const T> grad;
  const std::vector<DecayRange>* decayed = nullptr;  // ascending, disjoint
  double lr = 0, beta1 = 0.9, beta2 = 0.999, eps = 1e-8, decay = 0, ema = 0;
  double grad_scale = 1;  // the clip factor
  std::int64_t step = 1;  // t, from 1
};

void adamw(const AdamW<float>& op);
void adamw(const AdamW<double>& op);

// sqrt(sum x^2), accumulated in double.
double global_norm(Vector<const float> x);
double global_norm(Vector<const double> x);

namespace cpu {  // shapes are checked
void adamw(const AdamW<float>& op);
double global_norm(Vector<const float> x);
}  // namespace cpu

}  // namespace longstride::ops
