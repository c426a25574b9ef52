// The paper's activation.
//
//   y = x sigmoid(1.702 x)
//   dx = dy s (1 + 1.702 x (1 - s)),   s = sigmoid(1.702 x)
//
// Element by element; an element's bits do not depend on its place.
#pragma once

#include "tensor/bf16.h"
#include "tensor/tensor.h"

namespace longstride::ops {

template <class T>
struct Activation {
  Vector<const T> x;
  Vector<T> y;  // may be x
};

void activation(const Activation<float>& op);
void activation(const Activation<double>& op);
void activation(const Activation<bf16>& op);

template <class T>
struct ActivationBackward {
  Vector<const T> x, dy;
  Vector<T> dx;  // overwritten, may be dy
};

void activation_backward(const ActivationBackward<float>& op);
void activation_backward(const ActivationBackward<double>& op);
void activation_backward(const ActivationBackward<bf16>& op);

namespace cpu {  // shapes are checked
void activation(const Activation<float>& op);
void activation(const Activation<bf16>& op);
void activation_backward(const ActivationBackward<float>& op);
void activation_backward(const ActivationBackward<bf16>& op);
}  // namespace cpu

}  // namespace longstride::ops
