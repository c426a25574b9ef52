#include "model/cuda/block_cuda.h"

#include <algorithm>

#include "device/timed.h"
#include "ops/residual_norm/residual_norm_cuda.h"

namespace longstride {

namespace {

using device::DeviceBuffer;
using device::Timed;

template <class A>
Matrix<A> rows(const DeviceBuffer<A>& buffer, const DeviceShape& s, std::int64_t cols) {
  return matrix(buffer.data(), s.rows(), cols);
}

// The views of q, k and v, or of their gradients, in rows [q | k | v].
template <class A>
struct Projections {
  Heads<A> q, k, v;
  Projections(A* data, const DeviceShape& s)
      : q{data, s.batch, s.length, s.heads, s.qk / s.heads, s.qkv()},
        k{data + s.qk, s.batch, s.length, s.heads, s.qk / s.heads, s.qkv()},
        v{data + 2 * s.qk, s.batch, s.length, s.heads, s.width / s.heads, s.qkv()} {}
};

template <class A>
Heads<A> heads(const DeviceBuffer<A>& buffer, const DeviceShape& s) {
  return {buffer.data(), s.batch, s.length, s.heads, s.width / s.heads, s.width};
}

// Of the rows of this call, which may be fewer than the buffer was made for.
Vector<float> part(const DeviceBuffer<float>& buffer, std::int64_t size) {
  return {buffer.data(), size};
}

template <class A>
ops::cuda::AttentionBackward<A> attention_gradient(const DeviceShape& s,
                                                   const ops::cuda::DevicePlan& plan, A* qkv,
                                                   A* dqkv, Heads<const A> out,
                                                   Heads<const A> dout) {
  const Projections<A> p(qkv, s), d(dqkv, s);
  ops::cuda::AttentionBackward<A> op;
  op.plan = &plan;
  op.q = p.q;
  op.k = p.k;
  op.v = p.v;
  op.out = out;
  op.dout = dout;
  op.dq = d.q;
  op.dk = d.k;
  op.dv = d.v;
  op.lse.size = s.rows() * s.heads;
  return op;
}

}  // namespace

template <class A>
DeviceKept<A>::DeviceKept(const DeviceShape& s)
    : xhat1(s.rows() * s.width),
      qkv(s.rows() * s.qkv()),
      att(s.rows() * s.width),
      xhat2(s.rows() * s.width),
      pre(s.rows() * s.ff),
      rstd1(s.rows()),
      rstd2(s.rows()),
      lse(s.rows() * s.heads) {}

template <class A>
std::int64_t DeviceKept<A>::bytes(const DeviceShape& s) {
  return s.rows() * (static_cast<std::int64_t>(sizeof(A)) * (3 * s.width + s.qkv() + s.ff) +
                     static_cast<std::int64_t>(sizeof(float)) * (2 + s.heads));
}

template <class A>
DeviceScratch<A>::DeviceScratch(const DeviceShape& s, bool again, std::int64_t attention_scratch)
    : branch(s.rows() * s.width),
      dbranch(again ? s.rows() * s.width : 0),
      dx(s.rows() * s.width),
      wide(s.rows() * std::max(s.ff, s.qkv())),
      attention(attention_scratch) {}

template <class A>
std::int64_t DeviceScratch<A>::bytes(const DeviceShape& s, bool again,
                                     std::int64_t attention_scratch) {
  return s.rows() * static_cast<std::int64_t>(sizeof(A)) *
             ((again ? 3 : 2) * s.width + std::max(s.ff, s.qkv())) +
         attention_scratch * static_cast<std::int64_t>(sizeof(float));
}

template <class A>
void DeviceBlock<A>::forward(Matrix<float> h, bool complete, bool whole,
                             Matrix<float> input) const {
  const DeviceShape& s = shape;
  ops::cuda::ResidualNorm<A> norm;
  norm.h = h;
  norm.xhat = rows(kept.xhat1, s, s.width);
  norm.rstd = part(kept.rstd1, s.rows());
  if (!complete) {
    norm.branch = rows(scratch.branch, s, s.width);
    norm.dropout = dropout.of(2 * index - 1);
    norm.device_step = dropout.step;
  }
  {
    const Timed timed(stream, "norm");
    ops::cuda::residual_norm(stream, norm);
  }
  if (!input.empty())
    device::copy(stream, input.data, h.data,
                 h.rows * h.cols * static_cast<std::int64_t>(sizeof(float)));
  attend();
  rest(h, whole);
}

template <class A>
void DeviceBlock<A>::attend() const {
  const DeviceShape& s = shape;
  const auto qkv = maps.qkv.of(weights, biases);
  {
    const Timed timed(stream, "linear qkv");
    ops::cuda::linear(linear, stream,
                      ops::cuda::Linear<A>{rows(kept.xhat1, s, s.width), qkv.weight, qkv.bias,
                                           rows(kept.qkv, s, s.qkv())});
  }
  const Projections<A> p(kept.qkv.data(), s);
  const Timed timed(stream, "attention");
  ops::cuda::attention(stream, ops::cuda::Attention<A>{&plan, p.q, p.k, p.v, heads(kept.att, s),
                                                       part(kept.lse, s.rows() * s.heads), scale});
}

template <class A>
void DeviceBlock<A>::rest(Matrix<float> h, bool whole) const {
  const DeviceShape& s = shape;
  const auto out = maps.out.of(weights, biases), ff1 = maps.ff1.of(weights, biases),
             ff2 = maps.ff2.of(weights, biases);
  const auto branch = rows(scratch.branch, s, s.width);
  const auto active = rows(scratch.wide, s, s.ff);
  {
    const Timed timed(stream, "linear out");
    ops::cuda::linear(
        linear, stream,
        ops::cuda::Linear<A>{rows(kept.att, s, s.width), out.weight, out.bias, branch});
  }
  ops::cuda::ResidualNorm<A> norm;
  norm.h = h;
  norm.branch = branch;
  norm.xhat = rows(kept.xhat2, s, s.width);
  norm.rstd = part(kept.rstd2, s.rows());
  norm.dropout = dropout.of(2 * index);
  norm.device_step = dropout.step;
  {
    const Timed timed(stream, "norm");
    ops::cuda::residual_norm(stream, norm);
  }
  {
    const Timed timed(stream, "linear ff1, activation");
    ops::cuda::linear_activation(
        linear, stream,
        ops::cuda::LinearActivation<A>{rows(kept.xhat2, s, s.width), ff1.weight, ff1.bias,
                                       rows(kept.pre, s, s.ff), active});
  }
  if (!whole) return;
  const Timed timed(stream, "linear ff2");
  ops::cuda::linear(linear, stream, ops::cuda::Linear<A>{active, ff2.weight, ff2.bias, branch});
}

template <class A>
void DeviceBlock<A>::backward(Matrix<float> dh, Vector<float> dweights, Vector<float> dbiases,
                              bool add) const {
  const DeviceShape& s = shape;
  const auto branch = matrix(scratch.branch_gradient(), s.rows(), s.width);
  const auto dx = rows(scratch.dx, s, s.width);
  const auto active = rows(scratch.wide, s, s.ff), dqkv = rows(scratch.wide, s, s.qkv());
  const auto pre = rows(kept.pre, s, s.ff);
  const auto weight_gradient = [&](Matrix<const A> x, Matrix<const A> dy, const PackedMap& map) {
    const Timed timed(stream, "weight gradient");
    const auto g = map.of(dweights, dbiases);
    ops::cuda::linear_weight_gradient(
        linear, stream, ops::cuda::LinearWeightGradient<A>{x, dy, g.weight, g.bias, add});
  };
  const auto input_gradient = [&](Matrix<const A> dy, const PackedMap& map, Matrix<A> to) {
    const Timed timed(stream, "input gradient");
    ops::cuda::linear_input_gradient(
        linear, stream, ops::cuda::LinearInputGradient<A>{dy, map.of(weights, biases).weight, to});
  };
  const auto norm_gradient = [&](const DeviceBuffer<A>& xhat, const DeviceBuffer<float>& rstd,
                                 std::int64_t before) {
    ops::cuda::ResidualNormBackward<A> norm;
    norm.dxhat = dx;
    norm.xhat = rows(xhat, s, s.width);
    norm.rstd = part(rstd, s.rows());
    norm.dh = dh;
    if (before >= 0) {
      norm.dbranch = branch;
      norm.dropout = dropout.of(before);
      norm.device_step = dropout.step;
    }
    const Timed timed(stream, "norm backward");
    ops::cuda::residual_norm_backward(stream, norm);
  };

  {
    const Timed timed(stream, "activation gradient");
    ops::cuda::linear_activation_gradient(
        linear, stream,
        ops::cuda::LinearActivationGradient<A>{branch, maps.ff2.of(weights, biases).weight, pre,
                                               pre, active});
  }
  weight_gradient(active, branch, maps.ff2);
  weight_gradient(rows(kept.xhat2, s, s.width), pre, maps.ff1);
  input_gradient(pre, maps.ff1, dx);
  norm_gradient(kept.xhat2, kept.rstd2, 2 * index);

  weight_gradient(rows(kept.att, s, s.width), branch, maps.out);
  input_gradient(branch, maps.out, dx);
  auto gradient = attention_gradient<A>(s, plan, kept.qkv.data(), scratch.wide.data(),
                                        heads(kept.att, s), heads(scratch.dx, s));
  gradient.lse = part(kept.lse, s.rows() * s.heads);
  gradient.scratch = scratch.attention.vector();
  gradient.scale = scale;
  {
    const Timed timed(stream, "attention backward");
    ops::cuda::attention_backward(stream, gradient);
  }
  weight_gradient(rows(kept.xhat1, s, s.width), dqkv, maps.qkv);
  input_gradient(dqkv, maps.qkv, dx);
  norm_gradient(kept.xhat1, kept.rstd1, 2 * index - 1);
}

template <class A>
std::int64_t attention_scratch(const DeviceShape& s, const ops::cuda::DevicePlan& plan) {
  return ops::cuda::attention_backward_scratch(attention_gradient<A>(
      s, plan, nullptr, nullptr, {nullptr, s.batch, s.length, s.heads, s.width / s.heads, s.width},
      {nullptr, s.batch, s.length, s.heads, s.width / s.heads, s.width}));
}

template struct DeviceKept<float>;
template struct DeviceKept<bf16>;
template struct DeviceKept<fp16>;
template struct DeviceScratch<float>;
template struct DeviceScratch<bf16>;
template struct DeviceScratch<fp16>;
template struct DeviceBlock<float>;
template struct DeviceBlock<bf16>;
template struct DeviceBlock<fp16>;
template std::int64_t attention_scratch<float>(const DeviceShape&, const ops::cuda::DevicePlan&);
template std::int64_t attention_scratch<bf16>(const DeviceShape&, const ops::cuda::DevicePlan&);
template std::int64_t attention_scratch<fp16>(const DeviceShape&, const ops::cuda::DevicePlan&);

}  // namespace longstride
