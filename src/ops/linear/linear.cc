#include "ops/linear/linear.h"

#include <type_traits>

#include "ops/linear/linear_ref.h"
#include "ops/shape.h"

namespace longstride::ops {

namespace {

template <class A, class Y>
void check(const Linear<A, Y>& op) {
  const std::int64_t R = op.x.rows, K = op.x.cols, N = op.weight.cols;
  want_shape("linear", "x", op.x, R, K);
  want_shape("linear", "weight", op.weight, K, N);
  want_shape("linear", "y", op.y, R, N);
  if (!op.bias.empty()) want_size("linear", "bias", op.bias, N);
}

template <class A, class D>
void check(const LinearBackward<A, D>& op) {
  const std::int64_t R = op.x.rows, K = op.x.cols, N = op.dy.cols;
  want_shape("linear_backward", "x", op.x, R, K);
  want_shape("linear_backward", "dy", op.dy, R, N);
  want_shape("linear_backward", "weight", op.weight, K, N);
  want_shape("linear_backward", "dweight", op.dweight, K, N);
  if (!op.dx.empty()) want_shape("linear_backward", "dx", op.dx, R, K);
  if (std::is_same_v<D, bf16> && op.add_to_dx)
    throw invalid_argument(
        "linear_backward: add_to_dx is set for a dx of bf16, want a dx of float");
  if (!op.dbias.empty()) want_size("linear_backward", "dbias", op.dbias, N);
}

}  // namespace

void linear_forward(const Linear<float>& op) {
  check(op);
  cpu::linear_forward(op);
}

void linear_forward(const Linear<double>& op) {
  check(op);
  ref::linear_forward(op);
}

void linear_forward(const Linear<bf16>& op) {
  check(op);
  cpu::linear_forward(op);
}

void linear_forward(const Linear<bf16, float>& op) {
  check(op);
  cpu::linear_forward(op);
}

void linear_backward(const LinearBackward<float>& op) {
  check(op);
  cpu::linear_backward(op);
}

void linear_backward(const LinearBackward<double>& op) {
  check(op);
  ref::linear_backward(op);
}

void linear_backward(const LinearBackward<bf16>& op) {
  check(op);
  cpu::linear_backward(op);
}

void linear_backward(const LinearBackward<bf16, float>& op) {
  check(op);
  cpu::linear_backward(op);
}

}  // namespace longstride::ops
