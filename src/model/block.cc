#include "model/block.h"

#include <algorithm>

#include "base/integers.h"
#include "base/profile.h"
#include "ops/activation/activation.h"
#include "ops/attention/attention.h"
#include "ops/convert/convert.h"
#include "ops/layer_norm/layer_norm.h"
#include "ops/linear/linear.h"

namespace longstride {

namespace {

struct Rows {
  std::int64_t begin, count;
};

template <class Body>
void for_row_blocks(const BlockShape& s, const Body& body) {
  const std::int64_t step = s.row_block();
  for (std::int64_t begin = 0; begin < s.rows(); begin += step)
    body(Rows{begin, std::min(step, s.rows() - begin)});
}

template <class T>
Matrix<T> rows_of(Matrix<T> m, Rows r) {
  return {m.row(r.begin), r.count, m.cols, m.stride};
}

// Rows r of a buffer [R, cols].
template <class T>
Matrix<T> rows_of(const Buffer<T>& buffer, Rows r, std::int64_t cols) {
  return matrix(buffer.data() + r.begin * cols, r.count, cols);
}

template <class T>
Vector<T> rows_of(const Buffer<T>& buffer, Rows r) {
  return {buffer.data() + r.begin, r.count};
}

template <class T>
Vector<T> flat(Matrix<T> m) {
  return {m.data, m.rows * m.cols};
}

template <class T>
Heads<T> heads(const Buffer<T>& buffer, const BlockShape& s, std::int64_t width) {
  return {buffer.data(), s.batch, s.length, s.heads, width / s.heads, width};
}

template <class T>
Heads<const T> read_heads(const Buffer<T>& buffer, const BlockShape& s, std::int64_t width) {
  return heads(buffer, s, width);
}

// The block's steps, each over one row block.
template <class T, class A>
class Steps {
 public:
  Steps(const BlockCall<T, A>& call, Rows r)
      : s_(call.shape), w_(call.weights), a_(call.kept), t_(call.scratch), r_(r) {
    dropout_ = call.dropout;
    dropout_.first_row += r.begin;
    second_ = dropout_;
    ++second_.lane;
  }

  Matrix<A> x() const { return rows_of(t_.x, first(), s_.width); }
  Matrix<A> branch() const { return rows_of(t_.branch, first(), s_.width); }
  Matrix<A> att() const { return rows_of(a_.att, r_, s_.width); }
  Matrix<T> dx() const { return rows_of(t_.dx, first(), s_.width); }
  Matrix<A> f2() const { return rows_of(t_.f2, first(), s_.ff); }
  Matrix<A> dff() const { return rows_of(t_.dff, first(), s_.ff); }
  Matrix<T> mid() const {
    return a_.mid.size() ? rows_of(a_.mid, r_, s_.width) : rows_of(t_.mid, first(), s_.width);
  }
  Matrix<A> f1() const {
    return a_.f1.size() ? rows_of(a_.f1, r_, s_.ff) : rows_of(t_.f1, first(), s_.ff);
  }

  void norm1(Matrix<const T> h) const {
    norm(rows_of(h, r_), w_.norm1, rows_of(a_.mean1, r_), rows_of(a_.rstd1, r_));
  }
  void norm2() const { norm(mid(), w_.norm2, rows_of(a_.mean2, r_), rows_of(a_.rstd2, r_)); }
  void qkv() const {
    linear(x(), w_.q, rows_of(a_.q, r_, s_.qk));
    linear(x(), w_.k, rows_of(a_.k, r_, s_.qk));
    linear(x(), w_.v, rows_of(a_.v, r_, s_.width));
  }
  void middle(Matrix<const T> h) const {
    linear(att(), w_.out, branch());
    add(rows_of(h, r_), mid(), dropout_);
  }
  void widen() const { linear(x(), w_.ff1, f1()); }
  void activate() const {
    const Timed timed("activation");
    ops::activation(ops::Activation<A>{flat(f1()), flat(f2())});
  }
  void narrow(Matrix<T> h_next) const {
    linear(f2(), w_.ff2, branch());
    add(mid(), rows_of(h_next, r_), second_);
  }

  void branch_gradient(Matrix<const T> dh, bool second) const {
    const Timed timed("residual");
    ops::residual_backward(
        ops::ResidualBackward<T, A>{rows_of(dh, r_), branch(), second ? second_ : dropout_});
  }
  void activation_gradient() const {
    const Timed timed("activation");
    ops::activation_backward(ops::ActivationBackward<A>{flat(f1()), flat(dff()), flat(dff())});
  }
  void norm_gradient(Matrix<const T> in, const NormWeights<const T>& w, const Buffer<T>& mean,
                     const Buffer<T>& rstd, Matrix<T> dh, const NormWeights<T>& g) const {
    const Timed timed("norm");
    ops::layer_norm_backward(ops::LayerNormBackward<T>{
        in, w.gain, rows_of(mean, r_), rows_of(rstd, r_), dx(), rows_of(dh, r_), g.gain, g.bias});
  }
  template <class D>
  void linear_gradient(Matrix<const A> in, const LinearWeights<const T, const A>& p,
                       Matrix<const A> dy, Matrix<D> din, bool add_to,
                       const LinearWeights<T, T>& g) const {
    const Timed timed("linear backward");
    ops::linear_backward(
        ops::LinearBackward<A, D>{in, p.weight, dy, din, add_to, g.weight, g.bias});
  }
  // dx (+)= of one of q, k, v, whose gradient the attention has left in T.
  void projection_gradient(const LinearWeights<const T, const A>& p, const Buffer<T>& dy,
                           bool add_to, const LinearWeights<T, T>& g) const {
    const Matrix<T> gradient = rows_of(dy, r_, p.weight.cols);
    if constexpr (std::is_same_v<T, A>) {
      linear_gradient<T>(x(), p, gradient, dx(), add_to, g);
    } else {
      const Matrix<A> narrow = rows_of(t_.dqkv, first(), p.weight.cols);
      {
        const Timed timed("convert");
        ops::convert(flat(gradient), flat(narrow));
      }
      linear_gradient<T>(x(), p, narrow, dx(), add_to, g);
    }
  }

  Rows rows() const { return r_; }

 private:
  Rows first() const { return {0, r_.count}; }
  void norm(Matrix<const T> in, const NormWeights<const T>& w, Vector<T> mean,
            Vector<T> rstd) const {
    const Timed timed("norm");
    ops::layer_norm(ops::LayerNorm<T, A>{in, w.gain, w.bias, x(), mean, rstd});
  }
  void linear(Matrix<const A> in, const LinearWeights<const T, const A>& p, Matrix<A> y) const {
    const Timed timed("linear");
    ops::linear_forward(ops::Linear<A>{in, p.weight, p.bias, y});
  }
  void add(Matrix<const T> h, Matrix<T> y, const ops::Dropout& dropout) const {
    const Timed timed("residual");
    ops::residual(ops::Residual<T, A>{h, branch(), y, dropout});
  }

  const BlockShape& s_;
  const BlockWeights<const T, const A>& w_;
  BlockActivations<T, A>& a_;
  BlockScratch<T, A>& t_;
  Rows r_;
  ops::Dropout dropout_, second_;
};

}  // namespace

std::int64_t BlockShape::row_block() const {
  // Equal blocks, each with enough rows to keep many threads busy (docs/adr/0014).
  constexpr std::int64_t kValues = std::int64_t{12} << 20, kFewest = 1024, kMost = 12288;
  const std::int64_t blocks = ceil_div(rows(), std::clamp(kValues / ff, kFewest, kMost));
  return std::min(rows(), ceil_div(ceil_div(rows(), blocks), 64) * 64);
}

template <class T, class A>
BlockActivations<T, A>::BlockActivations(const BlockShape& s, bool whole)
    : mean1(s.rows()),
      rstd1(s.rows()),
      mean2(s.rows()),
      rstd2(s.rows()),
      q(s.rows() * s.qk),
      k(s.rows() * s.qk),
      v(s.rows() * s.width),
      att(s.rows() * s.width),
      lse(s.rows() * s.heads),
      mid(whole ? s.rows() * s.width : 0),
      f1(whole ? s.rows() * s.ff : 0) {}

template <class T, class A>
std::int64_t BlockActivations<T, A>::bytes(const BlockShape& s, bool whole) {
  const auto t = static_cast<std::int64_t>(sizeof(T)), a = static_cast<std::int64_t>(sizeof(A));
  return s.rows() * (t * (4 + s.heads + (whole ? s.width : 0)) +
                     a * (2 * s.qk + 2 * s.width + (whole ? s.ff : 0)));
}

template <class T, class A>
BlockScratch<T, A>::BlockScratch(const BlockShape& s)
    : x(s.row_block() * s.width),
      branch(s.row_block() * s.width),
      mid(s.row_block() * s.width),
      f1(s.row_block() * s.ff),
      f2(s.row_block() * s.ff),
      dff(s.row_block() * s.ff),
      dx(s.row_block() * s.width),
      dqkv(std::is_same_v<T, A> ? 0 : s.row_block() * std::max(s.qk, s.width)),
      datt(s.rows() * s.width),
      dq(s.rows() * s.qk),
      dk(s.rows() * s.qk),
      dv(s.rows() * s.width) {}

template <class T, class A>
std::int64_t BlockScratch<T, A>::bytes(const BlockShape& s) {
  const auto t = static_cast<std::int64_t>(sizeof(T)), a = static_cast<std::int64_t>(sizeof(A));
  const std::int64_t narrow = std::is_same_v<T, A> ? 0 : std::max(s.qk, s.width);
  return s.row_block() * (2 * t * s.width + a * (2 * s.width + 3 * s.ff + narrow)) +
         s.rows() * (t * (2 * s.qk + s.width) + a * s.width);
}

template <class T, class A>
void block_attention(const BlockCall<T, A>& call, Matrix<const T> h) {
  const BlockShape& s = call.shape;
  const auto& a = call.kept;
  for_row_blocks(s, [&](Rows r) {
    const Steps<T, A> step(call, r);
    step.norm1(h);
    step.qkv();
  });
  const Timed timed("attention");
  ops::attention(ops::Attention<A>{&call.plan, read_heads(a.q, s, s.qk), read_heads(a.k, s, s.qk),
                                   read_heads(a.v, s, s.width), heads(a.att, s, s.width),
                                   a.lse.vector(), call.scale});
}

template <class T, class A>
void block_forward(const BlockCall<T, A>& call, Matrix<const T> h, Matrix<T> h_next) {
  block_attention(call, h);
  for_row_blocks(call.shape, [&](Rows r) {
    const Steps<T, A> step(call, r);
    step.middle(h);
    step.norm2();
    step.widen();
    step.activate();
    step.narrow(h_next);
  });
}

template <class T, class A>
void block_backward(const BlockCall<T, A>& call, Matrix<const T> h, Matrix<T> dh,
                    const BlockWeights<T, T>& g) {
  const BlockShape& s = call.shape;
  const auto& w = call.weights;
  const auto& a = call.kept;
  const auto& t = call.scratch;

  for_row_blocks(s, [&](Rows r) {
    const Steps<T, A> step(call, r);
    if (a.mid.size() == 0) step.middle(h);
    step.norm2();
    if (a.f1.size() == 0) step.widen();
    step.activate();
    // h' = m + dropout(ff2(act(ff1(norm2(m)))))
    step.branch_gradient(dh, true);
    step.template linear_gradient<A>(step.f2(), w.ff2, step.branch(), step.dff(), false, g.ff2);
    step.activation_gradient();
    step.template linear_gradient<T>(step.x(), w.ff1, step.dff(), step.dx(), false, g.ff1);
    step.norm_gradient(step.mid(), w.norm2, a.mean2, a.rstd2, dh, g.norm2);
    // m = h + dropout(out(attention))
    step.branch_gradient(dh, false);
    step.template linear_gradient<A>(step.att(), w.out, step.branch(), rows_of(t.datt, r, s.width),
                                     false, g.out);
  });
  {
    const Timed timed("attention backward");
    ops::attention_backward(ops::AttentionBackward<A>{
        &call.plan, read_heads(a.q, s, s.qk), read_heads(a.k, s, s.qk), read_heads(a.v, s, s.width),
        read_heads(a.att, s, s.width), read_heads(t.datt, s, s.width), a.lse.vector(),
        heads(t.dq, s, s.qk), heads(t.dk, s, s.qk), heads(t.dv, s, s.width), call.scale});
  }
  for_row_blocks(s, [&](Rows r) {
    const Steps<T, A> step(call, r);
    step.norm1(h);
    step.projection_gradient(w.q, t.dq, false, g.q);
    step.projection_gradient(w.k, t.dk, true, g.k);
    step.projection_gradient(w.v, t.dv, true, g.v);
    step.norm_gradient(rows_of(h, r), w.norm1, a.mean1, a.rstd1, dh, g.norm1);
  });
}

template struct BlockActivations<float, float>;
template struct BlockActivations<float, bf16>;
template struct BlockActivations<double, double>;
template struct BlockScratch<float, float>;
template struct BlockScratch<float, bf16>;
template struct BlockScratch<double, double>;
template void block_attention(const BlockCall<float, float>&, Matrix<const float>);
template void block_attention(const BlockCall<float, bf16>&, Matrix<const float>);
template void block_attention(const BlockCall<double, double>&, Matrix<const double>);
template void block_forward(const BlockCall<float, float>&, Matrix<const float>, Matrix<float>);
template void block_forward(const BlockCall<float, bf16>&, Matrix<const float>, Matrix<float>);
template void block_forward(const BlockCall<double, double>&, Matrix<const double>, Matrix<double>);
template void block_backward(const BlockCall<float, float>&, Matrix<const float>, Matrix<float>,
                             const BlockWeights<float, float>&);
template void block_backward(const BlockCall<float, bf16>&, Matrix<const float>, Matrix<float>,
                             const BlockWeights<float, float>&);
template void block_backward(const BlockCall<double, double>&, Matrix<const double>, Matrix<double>,
                             const BlockWeights<double, double>&);

}  // namespace longstride
