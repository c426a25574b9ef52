// One residual block of the paper, forward and backward (facts.md section 2):
//
//   a = dropout(attention(norm1(h)))      m = h + a
//   b = dropout(ff(norm2(m)))             h' = m + b = h + a + b
//
// attention: q, k, v linear; masked attention; out linear.   ff: ff1, x sigmoid(1.702 x), ff2.
#pragma once

#include <cstdint>

#include "longstride/config.h"
#include "model/weights.h"
#include "ops/residual/residual.h"
#include "pattern/plan.h"
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
};

// What backward needs of a block's forward pass, beside its input.
template <class T>
struct BlockActivations {
  BlockActivations() = default;
  explicit BlockActivations(const BlockShape& s);
  static std::int64_t elements(const BlockShape& s);

  Buffer<T> x1, mean1, rstd1;  // norm1(h) [R, d], its statistics [R]
  Buffer<T> q, k, v;           // [R, qk], [R, qk], [R, d]
  Buffer<T> att, lse;          // [R, d], [B, H, N]
  Buffer<T> mid;               // m [R, d]
  Buffer<T> x2, mean2, rstd2;  // norm2(m)
  Buffer<T> f1, f2;            // before and after the activation [R, ff]
};

// Buffers that every block uses in turn.
template <class T>
struct BlockScratch {
  BlockScratch() = default;
  explicit BlockScratch(const BlockShape& s);
  static std::int64_t elements(const BlockShape& s);

  Buffer<T> branch;      // end of a residual branch, or its gradient [R, d]
  Buffer<T> dff;         // [R, ff]
  Buffer<T> dx, datt;    // [R, d]
  Buffer<T> dq, dk, dv;  // [R, qk], [R, qk], [R, d]
};

template <class T>
struct BlockCall {
  BlockShape shape;
  const AttentionPlan& plan;
  T scale;  // of the scores
  const BlockWeights<const T>& weights;
  ops::Dropout dropout;  // lane of the attention branch; the ff branch takes lane + 1
  BlockActivations<T>& kept;
  BlockScratch<T>& scratch;
};

// h_next = block(h); fills call.kept. h_next may be empty: only kept is wanted (recompute).
template <class T>
void block_forward(const BlockCall<T>& call, Matrix<const T> h, Matrix<T> h_next);

// dh: gradient of the block's output on entry, of its input on return. gradients +=.
template <class T>
void block_backward(const BlockCall<T>& call, Matrix<const T> h, Matrix<T> dh,
                    const BlockWeights<T>& gradients);

}  // namespace longstride
