#include "ops/layer_norm/layer_norm.h"

#include "ops/layer_norm/layer_norm_ref.h"
#include "ops/shape.h"

namespace longstride::ops {

namespace {

template <class T, class A>
void check(const LayerNorm<T, A>& op) {
  const std::int64_t R = op.x.rows, C = op.x.cols;
  want_shape("layer_norm", "x", op.x, R, C);
  want_shape("layer_norm", "y", op.y, R, C);
  want_size("layer_norm", "gain", op.gain, C);
  want_size("layer_norm", "bias", op.bias, C);
  if (op.mean.empty() && op.rstd.empty()) return;
  want_size("layer_norm", "mean", op.mean, R);
  want_size("layer_norm", "rstd", op.rstd, R);
}

template <class T>
void check(const LayerNormBackward<T>& op) {
  const std::int64_t R = op.x.rows, C = op.x.cols;
  want_shape("layer_norm_backward", "x", op.x, R, C);
  want_shape("layer_norm_backward", "dy", op.dy, R, C);
  want_shape("layer_norm_backward", "dx", op.dx, R, C);
  want_size("layer_norm_backward", "gain", op.gain, C);
  want_size("layer_norm_backward", "mean", op.mean, R);
  want_size("layer_norm_backward", "rstd", op.rstd, R);
  want_size("layer_norm_backward", "dgain", op.dgain, C);
  want_size("layer_norm_backward", "dbias", op.dbias, C);
}

}  // namespace

void layer_norm(const LayerNorm<float>& op) {
  check(op);
  cpu::layer_norm(op);
}

void layer_norm(const LayerNorm<double>& op) {
  check(op);
  ref::layer_norm(op);
}

void layer_norm(const LayerNorm<float, bf16>& op) {
  check(op);
  cpu::layer_norm(op);
}

void layer_norm_backward(const LayerNormBackward<float>& op) {
  check(op);
  cpu::layer_norm_backward(op);
}

void layer_norm_backward(const LayerNormBackward<double>& op) {
  check(op);
  ref::layer_norm_backward(op);
}

}  // namespace longstride::ops
