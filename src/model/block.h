// One residual block of the paper, forward and backward (facts.md section 2):
//
//   a = dropout(attention(norm1(h)))      m = h + a
//   b = dropout(ff(norm2(m)))             h' = m + b = h + a + b
//
// attention: q, k, v linear; masked attention; out linear.   ff: ff1, x sigmoid(1.702 x), ff2.
//
// Everything but the attention takes each row by itself. It runs in row blocks, so that its widest
// arrays are not as long as the sequence, and what is cheap to get again from a row block
// (norm1(h), norm2(m), the activation) is not kept. T: type of the residual stream, statistics,
// biases and gradients of weights. A: of what products and attention read (bf16, or T).
#pragma once

#include <cstdint>

#include "longstride/config.h"
#include "model/weights.h"
#include "ops/residual/residual.h"
#include "pattern/plan.h"
#include "tensor/bf16.h"
#include "tensor/tensor.h"

namespace longstride {

// B sequences of N positions, R = B * N rows.
struct BlockShape {
  BlockShape(const ModelConfig& model, std::int64_t batch_size)
      : batch(batch_size),
        length(model.context),
        heads(model.heads),
        width(model.width),
        qk(model.qk()),
        ff(model.ff()) {}
  std::int64_t batch, length, heads, width, qk, ff;
  std::int64_t rows() const { return batch * length; }
  std::int64_t row_block() const;  // rows of a row block, Z
};

// What backward needs of a block's forward pass, beside its input.
template <class T, class A>
struct BlockActivations {
  BlockActivations() = default;
  // whole: `mid` and `f1` too, so that nothing has to be computed again but elementwise steps.
  BlockActivations(const BlockShape& s, bool whole);
  static std::int64_t bytes(const BlockShape& s, bool whole);

  Buffer<T> mean1, rstd1, mean2, rstd2;  // statistics of the norms [R]
  Buffer<A> q, k, v;                     // [R, qk], [R, qk], [R, d]
  Buffer<A> att;                         // [R, d]
  Buffer<T> lse;                         // [B, H, N]
  Buffer<T> mid;                         // m [R, d], or empty
  Buffer<A> f1;                          // before the activation [R, ff], or empty
};

// Buffers that every block uses in turn.
template <class T, class A>
struct BlockScratch {
  BlockScratch() = default;
  explicit BlockScratch(const BlockShape& s);
  static std::int64_t bytes(const BlockShape& s);

  // Of one row block:
  Buffer<A> x, branch;    // output of a norm; end of a residual branch, or its gradient [Z, d]
  Buffer<T> mid;          // [Z, d]
  Buffer<A> f1, f2, dff;  // [Z, ff]
  Buffer<T> dx;           // [Z, d]
  Buffer<A> dqkv;         // [Z, max(qk, d)]; empty where A is T
  // Of all rows:
  Buffer<A> datt;        // [R, d]
  Buffer<T> dq, dk, dv;  // [R, qk], [R, qk], [R, d]
};

template <class T, class A>
struct BlockCall {
  BlockShape shape;
  const AttentionPlan& plan;
  T scale;  // of the scores
  const BlockWeights<const T, const A>& weights;
  ops::Dropout dropout;  // lane of the attention branch; the ff branch takes lane + 1
  BlockActivations<T, A>& kept;
  BlockScratch<T, A>& scratch;
};

// h_next = block(h); fills call.kept.
template <class T, class A>
void block_forward(const BlockCall<T, A>& call, Matrix<const T> h, Matrix<T> h_next);

// The first half of the same: norm1 to attention, which is what backward needs of a block whose
// forward pass was not kept.
template <class T, class A>
void block_attention(const BlockCall<T, A>& call, Matrix<const T> h);

// dh: gradient of the block's output on entry, of its input on return. gradients +=.
template <class T, class A>
void block_backward(const BlockCall<T, A>& call, Matrix<const T> h, Matrix<T> dh,
                    const BlockWeights<T, T>& gradients);

}  // namespace longstride
