// Softmax cross-entropy over V symbols.
//
//   nats[r] = log sum_v exp(logits[r,v]) - logits[r, target[r]]
//   dlogits[r,v] = scale (softmax(logits[r])[v] - [v == target[r]])
//
// A row's bits depend on that row only.
#pragma once

#include <cstdint>

#include "tensor/bf16.h"
#include "tensor/tensor.h"

namespace longstride::ops {

template <class T, class A = T>
struct CrossEntropy {
  Matrix<const T> logits;                 // [R, V]
  const std::uint8_t* targets = nullptr;  // [R]
  Vector<T> nats;                         // [R]
  Matrix<A> dlogits;                      // [R, V], overwritten, may be logits; empty: not wanted
  T scale = 1;
};

void cross_entropy(const CrossEntropy<float>& op);
void cross_entropy(const CrossEntropy<double>& op);
void cross_entropy(const CrossEntropy<float, bf16>& op);

namespace cpu {  // shapes are checked
void cross_entropy(const CrossEntropy<float>& op);
void cross_entropy(const CrossEntropy<float, bf16>& op);
}  // namespace cpu

}  // namespace longstride::ops
