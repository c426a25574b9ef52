#include "model/cuda/block_cuda.h"

#include <algorithm>

#include "device/timed.h"
#include "ops/linear/linear_norm_cuda.h"
#include "ops/residual_norm/residual_norm_cuda.h"

namespace longstride {

namespace {

using device::Timed;

// Rows [begin, begin + count) of `m`.
template <class T>
Matrix<T> rows(Matrix<T> m, std::int64_t begin, std::int64_t count) {
  return {m.row(begin), count, m.cols, m.stride};
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
Heads<A> heads(A* data, const DeviceShape& s) {
  return {data, s.batch, s.length, s.heads, s.width / s.heads, s.width};
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
DeviceKept<A>::DeviceKept(char* memory, const DeviceLayout::Block& b)
    : norm1{reinterpret_cast<A*>(memory + b.xhat1), reinterpret_cast<float*>(memory + b.rstd1)},
      norm2{reinterpret_cast<A*>(memory + b.xhat2), reinterpret_cast<float*>(memory + b.rstd2)},
      qkv(reinterpret_cast<A*>(memory + b.qkv)),
      att(reinterpret_cast<A*>(memory + b.att)),
      inner(reinterpret_cast<A*>(memory + b.inner)),
      active(reinterpret_cast<A*>(memory + b.active)),
      lse(reinterpret_cast<float*>(memory + b.lse)),
      qkv_again(b.qkv_again) {}

template <class A>
void DeviceBlock<A>::first_norm(Matrix<float> h) const {
  const Timed timed(stream, "norm");
  const auto xhat = narrow(kept.norm1.xhat);
  const Vector<float> rstd = {kept.norm1.rstd, shape.rows()};
  if (ops::cuda::ends_in_norm<A>(shape.width, shape.ff)) {  // the bits of add_and_norm()
    ops::cuda::LinearResidualNorm<A> norm;
    norm.h = h;
    norm.xhat = xhat;
    norm.rstd = rstd;
    return ops::cuda::linear_residual_norm(stream, norm);
  }
  ops::cuda::ResidualNorm<A> norm;
  norm.h = h;
  norm.xhat = xhat;
  norm.rstd = rstd;
  ops::cuda::residual_norm(stream, norm);
}

template <class A>
void DeviceBlock<A>::add_and_norm(Matrix<const A> x, const PackedMap& map, const char* name,
                                  Matrix<float> h, const DeviceNorm<A>& norm, std::int64_t branch,
                                  std::int64_t begin) const {
  const auto m = map.of(weights, biases);
  const auto stream_rows = rows(h, begin, x.rows);
  const auto xhat = rows(narrow(norm.xhat), begin, x.rows);
  const Vector<float> rstd = {norm.rstd + begin, x.rows};
  ops::Dropout drop = dropout.of(branch);
  drop.first_row += begin;
  if (ops::cuda::ends_in_norm<A>(shape.width, map.in)) {
    const Timed timed(stream, "linear, residual, norm");
    return ops::cuda::linear_residual_norm(
        stream, ops::cuda::LinearResidualNorm<A>{x, m.weight, m.bias, stream_rows, xhat, rstd, drop,
                                                 norm.eps, dropout.step});
  }
  {
    const Timed timed(stream, name);
    ops::cuda::linear(linear, stream, ops::cuda::Linear<A>{x, m.weight, m.bias, xhat});
  }
  const Timed timed(stream, "norm");
  ops::cuda::residual_norm(stream, ops::cuda::ResidualNorm<A>{stream_rows, xhat, xhat, rstd, drop,
                                                              norm.eps, dropout.step});
}

template <class A>
void DeviceBlock<A>::forward(Matrix<float> h, const DeviceNorm<A>& next) const {
  project();
  attend();
  add_and_norm(narrow(kept.att), maps.out, "linear out", h, kept.norm2, 2 * index, 0);
  feed(h, next);
}

template <class A>
void DeviceBlock<A>::project() const {
  const Timed timed(stream, "linear qkv");
  const auto qkv = maps.qkv.of(weights, biases);
  ops::cuda::linear(linear, stream,
                    ops::cuda::Linear<A>{narrow(kept.norm1.xhat), qkv.weight, qkv.bias,
                                         matrix(kept.qkv, shape.rows(), shape.qkv())});
}

template <class A>
void DeviceBlock<A>::attend() const {
  const Timed timed(stream, "attention");
  const Projections<A> p(kept.qkv, shape);
  ops::cuda::attention(stream, ops::cuda::Attention<A>{&plan,
                                                       p.q,
                                                       p.k,
                                                       p.v,
                                                       heads(kept.att, shape),
                                                       {kept.lse, shape.rows() * shape.heads},
                                                       scale});
}

template <class A>
void DeviceBlock<A>::feed(Matrix<float> h, const DeviceNorm<A>& next) const {
  const auto ff1 = maps.ff1.of(weights, biases);
  const auto x = narrow(kept.norm2.xhat), inner = matrix(kept.inner, shape.rows(), shape.ff);
  for (std::int64_t begin = 0; begin < shape.rows(); begin += ff_rows) {
    const std::int64_t count = std::min(ff_rows, shape.rows() - begin);
    const auto active = matrix(kept.active, count, shape.ff);
    {
      const Timed timed(stream, "linear ff1, activation");
      ops::cuda::linear_activation(
          linear, stream,
          ops::cuda::LinearActivation<A>{rows(x, begin, count), ff1.weight, ff1.bias,
                                         rows(inner, begin, count), active});
    }
    if (next.xhat != nullptr)
      add_and_norm(active, maps.ff2, "linear ff2", h, next, 2 * index + 1, begin);
  }
}

template <class A>
void DeviceBlock<A>::backward(Matrix<float> dh, const PackedBlock& to, Vector<float> gradients,
                              bool add, bool inner_again) const {
  const DeviceShape& s = shape;
  const auto branch = narrow(scratch.branch), x2 = narrow(kept.norm2.xhat);
  const auto dqkv = matrix(scratch.dqkv, s.rows(), s.qkv());
  const auto inner = matrix(kept.inner, s.rows(), s.ff);
  const auto weight_gradient = [&](Matrix<const A> x, Matrix<const A> dy, const PackedMap& map,
                                   bool adds) {
    const Timed timed(stream, "weight gradient");
    const auto g = map.of(gradients, gradients);
    ops::cuda::linear_weight_gradient(
        linear, stream, ops::cuda::LinearWeightGradient<A>{x, dy, g.weight, g.bias, adds});
  };
  const auto input_gradient = [&](Matrix<const A> dy, const PackedMap& map, Matrix<A> dx) {
    const Timed timed(stream, "input gradient");
    ops::cuda::linear_input_gradient(
        linear, stream, ops::cuda::LinearInputGradient<A>{dy, map.of(weights, biases).weight, dx});
  };
  // dy is the gradient of what the map made of a norm's output; `branch` becomes that of the branch
  // in front of the norm.
  const auto norm_gradient = [&](Matrix<const A> dy, const PackedMap& map,
                                 const DeviceNorm<A>& norm, std::int64_t before) {
    const auto weight = map.of(weights, biases).weight;
    const auto xhat = narrow(norm.xhat);
    const Vector<const float> rstd = {norm.rstd, s.rows()};
    const auto dbranch = before >= 0 ? branch : Matrix<A>();
    const auto drop = before >= 0 ? dropout.of(before) : ops::Dropout();
    if (ops::cuda::ends_in_norm<A>(s.width, map.out)) {
      const Timed timed(stream, "input gradient, norm backward");
      return ops::cuda::linear_norm_backward(
          stream, ops::cuda::LinearNormBackward<A>{dy, weight, xhat, rstd, dh, dbranch, drop,
                                                   dropout.step});
    }
    input_gradient(dy, map, branch);
    const Timed timed(stream, "norm backward");
    ops::cuda::residual_norm_backward(
        stream, ops::cuda::ResidualNormBackward<A>{branch, xhat, rstd, dh, true, dbranch, drop,
                                                   dropout.step});
  };

  if (inner_again) feed({}, {});
  for (std::int64_t begin = 0; begin < s.rows(); begin += ff_rows) {
    const std::int64_t count = std::min(ff_rows, s.rows() - begin);
    const auto active = matrix(kept.active, count, s.ff);
    const auto pre = rows(inner, begin, count), dy = rows(branch, begin, count);
    {
      const Timed timed(stream, "activation gradient");
      ops::cuda::linear_activation_gradient(
          linear, stream,
          ops::cuda::LinearActivationGradient<A>{dy, maps.ff2.of(weights, biases).weight, pre, pre,
                                                 active});
    }
    weight_gradient(active, dy, to.ff2, add || begin > 0);
  }
  weight_gradient(x2, inner, to.ff1, add);
  norm_gradient(inner, maps.ff1, kept.norm2, 2 * index);

  weight_gradient(narrow(kept.att), branch, to.out, add);
  input_gradient(branch, maps.out, narrow(scratch.out));
  if (kept.qkv_again) project();
  auto gradient = attention_gradient<A>(s, plan, kept.qkv, scratch.dqkv, heads(kept.att, s),
                                        heads(scratch.out, s));
  gradient.lse = {kept.lse, s.rows() * s.heads};
  gradient.scratch = scratch.attention;
  gradient.scale = scale;
  {
    const Timed timed(stream, "attention backward");
    ops::cuda::attention_backward(stream, gradient);
  }
  weight_gradient(narrow(kept.norm1.xhat), dqkv, to.qkv, add);
  norm_gradient(dqkv, maps.qkv, kept.norm1, 2 * index - 1);
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
template struct DeviceBlock<float>;
template struct DeviceBlock<bf16>;
template struct DeviceBlock<fp16>;
template std::int64_t attention_scratch<float>(const DeviceShape&, const ops::cuda::DevicePlan&);
template std::int64_t attention_scratch<bf16>(const DeviceShape&, const ops::cuda::DevicePlan&);
template std::int64_t attention_scratch<fp16>(const DeviceShape&, const ops::cuda::DevicePlan&);

}  // namespace longstride
