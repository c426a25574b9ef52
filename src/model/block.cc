#include "model/block.h"

#include "ops/activation/activation.h"
#include "ops/attention/attention.h"
#include "ops/layer_norm/layer_norm.h"
#include "ops/linear/linear.h"

namespace longstride {

namespace {

template <class T>
Heads<T> heads(const Buffer<T>& buffer, const BlockShape& s, std::int64_t width) {
  return {buffer.data(), s.batch, s.length, s.heads, width / s.heads, width};
}

template <class T>
Heads<const T> read_heads(const Buffer<T>& buffer, const BlockShape& s, std::int64_t width) {
  return heads(buffer, s, width);
}

template <class T>
Matrix<const T> read(const Buffer<T>& buffer, std::int64_t rows, std::int64_t cols) {
  return buffer.matrix(rows, cols);
}

ops::Dropout second_branch(ops::Dropout dropout) {
  ++dropout.lane;
  return dropout;
}

}  // namespace

template <class T>
BlockActivations<T>::BlockActivations(const BlockShape& s)
    : x1(s.rows() * s.width),
      mean1(s.rows()),
      rstd1(s.rows()),
      q(s.rows() * s.qk),
      k(s.rows() * s.qk),
      v(s.rows() * s.width),
      att(s.rows() * s.width),
      lse(s.rows() * s.heads),
      mid(s.rows() * s.width),
      x2(s.rows() * s.width),
      mean2(s.rows()),
      rstd2(s.rows()),
      f1(s.rows() * s.ff),
      f2(s.rows() * s.ff) {}

template <class T>
std::int64_t BlockActivations<T>::elements(const BlockShape& s) {
  return s.rows() * (5 * s.width + 2 * s.qk + 2 * s.ff + s.heads + 4);
}

template <class T>
BlockScratch<T>::BlockScratch(const BlockShape& s)
    : branch(s.rows() * s.width),
      dff(s.rows() * s.ff),
      dx(s.rows() * s.width),
      datt(s.rows() * s.width),
      dq(s.rows() * s.qk),
      dk(s.rows() * s.qk),
      dv(s.rows() * s.width) {}

template <class T>
std::int64_t BlockScratch<T>::elements(const BlockShape& s) {
  return s.rows() * (4 * s.width + 2 * s.qk + s.ff);
}

template <class T>
void block_forward(const BlockCall<T>& call, Matrix<const T> h, Matrix<T> h_next) {
  const BlockShape& s = call.shape;
  const auto& w = call.weights;
  auto& a = call.kept;
  const std::int64_t R = s.rows();
  const auto branch = call.scratch.branch.matrix(R, s.width);
  const auto linear = [&](Matrix<const T> x, const LinearWeights<const T>& p, Matrix<T> y) {
    ops::linear_forward(ops::Linear<T>{x, p.weight, p.bias, y});
  };

  const auto x1 = a.x1.matrix(R, s.width);
  ops::layer_norm(
      ops::LayerNorm<T>{h, w.norm1.gain, w.norm1.bias, x1, a.mean1.vector(), a.rstd1.vector()});
  linear(x1, w.q, a.q.matrix(R, s.qk));
  linear(x1, w.k, a.k.matrix(R, s.qk));
  linear(x1, w.v, a.v.matrix(R, s.width));
  ops::attention(ops::Attention<T>{&call.plan, read_heads(a.q, s, s.qk), read_heads(a.k, s, s.qk),
                                   read_heads(a.v, s, s.width), heads(a.att, s, s.width),
                                   a.lse.vector(), call.scale});
  linear(read(a.att, R, s.width), w.out, branch);
  const auto mid = a.mid.matrix(R, s.width);
  ops::residual(ops::Residual<T>{h, branch, mid, call.dropout});

  const auto x2 = a.x2.matrix(R, s.width);
  ops::layer_norm(
      ops::LayerNorm<T>{mid, w.norm2.gain, w.norm2.bias, x2, a.mean2.vector(), a.rstd2.vector()});
  linear(x2, w.ff1, a.f1.matrix(R, s.ff));
  ops::activation(ops::Activation<T>{a.f1.vector(), a.f2.vector()});
  if (h_next.empty()) return;
  linear(read(a.f2, R, s.ff), w.ff2, branch);
  ops::residual(ops::Residual<T>{mid, branch, h_next, second_branch(call.dropout)});
}

template <class T>
void block_backward(const BlockCall<T>& call, Matrix<const T> h, Matrix<T> dh,
                    const BlockWeights<T>& g) {
  const BlockShape& s = call.shape;
  const auto& w = call.weights;
  const auto& a = call.kept;
  auto& t = call.scratch;
  const std::int64_t R = s.rows();
  const auto branch = t.branch.matrix(R, s.width);
  const auto dx = t.dx.matrix(R, s.width);
  const auto linear = [&](Matrix<const T> x, const LinearWeights<const T>& p, Matrix<const T> dy,
                          Matrix<T> dinput, bool add, const LinearWeights<T>& dp) {
    ops::linear_backward(ops::LinearBackward<T>{x, p.weight, dy, dinput, add, dp.weight, dp.bias});
  };

  // h' = m + dropout(ff2(act(ff1(norm2(m)))))
  ops::residual_backward(ops::ResidualBackward<T>{dh, branch, second_branch(call.dropout)});
  linear(read(a.f2, R, s.ff), w.ff2, branch, t.dff.matrix(R, s.ff), false, g.ff2);
  ops::activation_backward(
      ops::ActivationBackward<T>{a.f1.vector(), t.dff.vector(), t.dff.vector()});
  linear(read(a.x2, R, s.width), w.ff1, read(t.dff, R, s.ff), dx, false, g.ff1);
  ops::layer_norm_backward(ops::LayerNormBackward<T>{read(a.mid, R, s.width), w.norm2.gain,
                                                     a.mean2.vector(), a.rstd2.vector(), dx, dh,
                                                     g.norm2.gain, g.norm2.bias});

  // m = h + dropout(out(attention(norm1(h))))
  ops::residual_backward(ops::ResidualBackward<T>{dh, branch, call.dropout});
  linear(read(a.att, R, s.width), w.out, branch, t.datt.matrix(R, s.width), false, g.out);
  ops::attention_backward(ops::AttentionBackward<T>{
      &call.plan, read_heads(a.q, s, s.qk), read_heads(a.k, s, s.qk), read_heads(a.v, s, s.width),
      read_heads(a.att, s, s.width), read_heads(t.datt, s, s.width), a.lse.vector(),
      heads(t.dq, s, s.qk), heads(t.dk, s, s.qk), heads(t.dv, s, s.width), call.scale});
  const auto x1 = read(a.x1, R, s.width);
  linear(x1, w.q, read(t.dq, R, s.qk), dx, false, g.q);
  linear(x1, w.k, read(t.dk, R, s.qk), dx, true, g.k);
  linear(x1, w.v, read(t.dv, R, s.width), dx, true, g.v);
  ops::layer_norm_backward(ops::LayerNormBackward<T>{
      h, w.norm1.gain, a.mean1.vector(), a.rstd1.vector(), dx, dh, g.norm1.gain, g.norm1.bias});
}

template struct BlockActivations<float>;
template struct BlockActivations<double>;
template struct BlockScratch<float>;
template struct BlockScratch<double>;
template void block_forward(const BlockCall<float>&, Matrix<const float>, Matrix<float>);
template void block_forward(const BlockCall<double>&, Matrix<const double>, Matrix<double>);
template void block_backward(const BlockCall<float>&, Matrix<const float>, Matrix<float>,
                             const BlockWeights<float>&);
template void block_backward(const BlockCall<double>&, Matrix<const double>, Matrix<double>,
                             const BlockWeights<double>&);

}  // namespace longstride
