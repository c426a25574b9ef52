// One residual block on the GPU, forward and backward: model/block.h with q, k, v as one product,
// norms folded into the weights behind them (ops/fold) and the residual stream updated in place.
//
// In forward the stream h is carried along together with the branch that is not yet added to it, so
// that "h += dropout(branch)" and the norm that follows are one pass over memory; backward likewise
// carries dh and the gradient of the branch in front.
//
// Bytes a row of d, with A two bytes: kept 2 (2 d + (2 qk + d) + d + ff) + 4 H + 8.
#pragma once

#include <cstdint>

#include "device/cuda.h"
#include "longstride/config.h"
#include "model/cuda/packed_weights.h"
#include "ops/attention/attention_cuda.h"
#include "ops/linear/linear_cuda.h"
#include "ops/residual/residual.h"

namespace longstride {

// B sequences of N positions, R = B * N rows.
struct DeviceShape {
  DeviceShape(const ModelConfig& model, std::int64_t batch_size, std::int64_t positions)
      : batch(batch_size),
        length(positions),
        heads(model.heads),
        width(model.width),
        qk(model.qk()),
        ff(model.ff()) {}
  std::int64_t batch, length, heads, width, qk, ff;
  std::int64_t rows() const { return batch * length; }
  std::int64_t qkv() const { return 2 * qk + width; }
};

// What backward needs of a block's forward pass. A block run for its output alone may share one
// instance with all others.
template <class A>
struct DeviceKept {
  DeviceKept() = default;
  explicit DeviceKept(const DeviceShape& s);
  static std::int64_t bytes(const DeviceShape& s);

  device::DeviceBuffer<A> xhat1, qkv, att, xhat2;  // [R, d], [R, 2 qk + d], [R, d], [R, d]
  device::DeviceBuffer<A> pre;                     // before the activation [R, ff]
  device::DeviceBuffer<float> rstd1, rstd2, lse;   // [R], [R], [B, H, N]
};

// Buffers that every block uses in turn.
template <class A>
struct DeviceScratch {
  DeviceScratch() = default;
  // again: forward passes run between backward ones, so that gradients need a place of their own.
  DeviceScratch(const DeviceShape& s, bool again, std::int64_t attention_scratch);
  static std::int64_t bytes(const DeviceShape& s, bool again, std::int64_t attention_scratch);
  A* branch_gradient() const { return dbranch.size() ? dbranch.data() : branch.data(); }

  device::DeviceBuffer<A> branch;   // end of a residual branch [R, d]
  device::DeviceBuffer<A> dbranch;  // its gradient; empty: stands in `branch`
  device::DeviceBuffer<A> dx;       // gradient of a norm's or the attention's output [R, d]
  device::DeviceBuffer<A> wide;     // the activation, or gradients of q, k, v [R, max(ff, 2qk+d)]
  device::DeviceBuffer<float> attention;  // of the attention's backward
};

// The dropout of branch 2 r (attention of block r) and 2 r + 1 (its feed-forward).
struct DeviceDropout {
  double p = 0;
  std::uint64_t seed = 0;
  const std::int64_t* step = nullptr;  // in device memory
  std::int64_t first_row = 0;
  ops::Dropout of(std::int64_t branch) const {
    return {p, seed, 0, static_cast<std::uint32_t>(branch), first_row};
  }
};

template <class A>
struct DeviceBlock {
  device::Stream stream;
  ops::cuda::LinearContext& linear;
  DeviceShape shape;
  std::int64_t index;  // of the block, from 0
  const ops::cuda::DevicePlan& plan;
  float scale;  // of the scores
  const PackedBlock& maps;
  Vector<const A> weights;     // packed
  Vector<const float> biases;  // packed
  DeviceDropout dropout;
  DeviceKept<A>& kept;
  DeviceScratch<A>& scratch;

  // On entry h lacks the branch of the block before, which scratch.branch holds (`complete`: it
  // lacks nothing); on return it lacks this block's feed-forward branch, likewise. `whole` = false
  // leaves that branch out: all that backward needs is there. input [R, d]: a copy of the complete
  // h, or empty.
  void forward(Matrix<float> h, bool complete, bool whole, Matrix<float> input) const;

  // On entry dh is the gradient of the block's output and scratch.branch_gradient() that of its
  // feed-forward branch; on return of its input, and of the feed-forward branch of the block
  // before. Overwrites kept.pre. Gradients of packed weights: overwritten, or += with `add`.
  void backward(Matrix<float> dh, Vector<float> dweights, Vector<float> dbiases, bool add) const;

 private:
  void attend() const;
  void rest(Matrix<float> h, bool whole) const;
};

// Floats that a block's backward wants as `attention_scratch`.
template <class A>
std::int64_t attention_scratch(const DeviceShape& s, const ops::cuda::DevicePlan& plan);

}  // namespace longstride
