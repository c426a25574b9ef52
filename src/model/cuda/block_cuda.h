// One residual block on the GPU, forward and backward: model/block.h with q, k, v as one product,
// norms folded into the weights behind them (ops/fold) and the residual stream updated in place.
//
// In forward a block leaves the stream h complete and its norm where the next block reads it: a
// branch ends where the norm behind it shall stand, and is added to h and normalised there in one
// pass. Backward carries dh and the gradient of the branch in front.
//
// Bytes a row of d, with A two bytes: kept 2 (2 d + (2 qk + d) + d + ff) + 4 H + 8.
#pragma once

#include <cstdint>

#include "device/cuda.h"
#include "longstride/config.h"
#include "model/cuda/packed_weights.h"
#include "model/device_layout.h"
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

// The normalised rows that products read, and 1 / deviation of each.
template <class A>
struct DeviceNorm {
  A* xhat = nullptr;      // [R, d]
  float* rstd = nullptr;  // [R]
  float eps = 1e-5f;
};

// What backward needs of a block's forward pass, in the memory of a pass.
template <class A>
struct DeviceKept {
  DeviceKept(char* memory, const DeviceLayout::Block& places);

  DeviceNorm<A> norm1, norm2;
  A *qkv, *att;    // [R, 2 qk + d], [R, d]
  A* inner;        // before the activation [R, ff]
  A* active;       // scratch: behind it, `block.ff_rows` rows at a time
  float* lse;      // [B, H, N]
  bool qkv_again;  // qkv is overwritten before backward reads it
};

// Buffers that every block uses in turn.
template <class A>
struct DeviceScratch {
  A* branch;                // gradient of a branch [R, d]
  A* out;                   // gradient of the attention's output [R, d]
  A* dqkv;                  // gradients of q, k, v [R, 2 qk + d]
  Vector<float> attention;  // of the attention's backward; may be `branch`
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
  std::int64_t index;    // of the block, from 0
  std::int64_t ff_rows;  // of the feed-forward half at a time
  const ops::cuda::DevicePlan& plan;
  float scale;  // of the scores
  const PackedBlock& maps;
  Vector<const A> weights;     // packed
  Vector<const float> biases;  // packed
  DeviceDropout dropout;
  const DeviceKept<A>& kept;
  const DeviceScratch<A>& scratch;

  // The norm of h alone, which the first block reads.
  void first_norm(Matrix<float> h) const;

  // On entry h is the block's input and kept.norm1 its norm; on return h is the block's output and
  // `next` the norm of that. next.xhat null: the feed-forward branch is left out, all that backward
  // needs is there.
  void forward(Matrix<float> h, const DeviceNorm<A>& next) const;

  // On entry dh is the gradient of the block's output and scratch.branch that of its feed-forward
  // branch; on return of its input, and of the feed-forward branch of the block before. Overwrites
  // kept.inner; inner_again: makes it first. Gradients of packed weights stand in `gradients` where
  // `to` says: overwritten, or += with `add`.
  void backward(Matrix<float> dh, const PackedBlock& to, Vector<float> gradients, bool add,
                bool inner_again) const;

 private:
  Matrix<A> narrow(A* data) const { return matrix(data, shape.rows(), shape.width); }
  void project() const;
  void attend() const;
  void feed(Matrix<float> h, const DeviceNorm<A>& next) const;
  // h += dropout(x W + b) of this branch, and its norm: rows from `begin` on, as many as x has.
  void add_and_norm(Matrix<const A> x, const PackedMap& map, const char* name, Matrix<float> h,
                    const DeviceNorm<A>& norm, std::int64_t branch, std::int64_t begin) const;
};

// Floats that a block's backward wants as `attention_scratch`.
template <class A>
std::int64_t attention_scratch(const DeviceShape& s, const ops::cuda::DevicePlan& plan);

}  // namespace longstride
