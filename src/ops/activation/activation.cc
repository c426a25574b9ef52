#include "ops/activation/activation.h"

#include "ops/activation/activation_ref.h"
#include "ops/shape.h"

namespace longstride::ops {

namespace {

template <class T>
void check(const Activation<T>& op) {
  want_size("activation", "x", op.x, op.x.size);
  want_size("activation", "y", op.y, op.x.size);
}

template <class T>
void check(const ActivationBackward<T>& op) {
  want_size("activation_backward", "x", op.x, op.x.size);
  want_size("activation_backward", "dy", op.dy, op.x.size);
  want_size("activation_backward", "dx", op.dx, op.x.size);
}

}  // namespace

void activation(const Activation<float>& op) {
  check(op);
  cpu::activation(op);
}

void activation(const Activation<double>& op) {
  check(op);
  ref::activation(op);
}

void activation(const Activation<bf16>& op) {
  check(op);
  cpu::activation(op);
}

void activation_backward(const ActivationBackward<float>& op) {
  check(op);
  cpu::activation_backward(op);
}

void activation_backward(const ActivationBackward<double>& op) {
  check(op);
  ref::activation_backward(op);
}

void activation_backward(const ActivationBackward<bf16>& op) {
  check(op);
  cpu::activation_backward(op);
}

}  // namespace longstride::ops
