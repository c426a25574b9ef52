// The host's side of the backward kernel of short line patterns.
#pragma once

#include "ops/attention/attention_sm90_short_backward.cuh"
#include "ops/attention/attention_sm90_short_launch.cuh"

namespace longstride::ops::cuda::sm90 {

template <class A, int kQk, int kV, int kHeads>
void short_backward(device::Stream stream, const AttentionBackward<A>& op, const Line& line) {
  using Shape = ShortBackwardShape<kQk, kV, kHeads>;
  ShortBackwardParams<A> p{};
  p.q = short_map<kHeads>(op.q), p.k = short_map<kHeads>(op.k), p.v = short_map<kHeads>(op.v);
  p.dout = short_map<kHeads>(op.dout), p.out = short_map<kHeads>(op.out);
  p.lse = op.lse.data;
  p.dq = op.dq, p.dk = op.dk, p.dv = op.dv;
  p.scale = op.scale;
  walk_short<kHeads, Shape>(stream, short_backward_kernel<A, Shape>, p, op.q, line);
  device::launched(stream, "attention_backward (Hopper, short) ", op.q.batch, "x", op.q.length, "x",
                   op.q.heads, "x", op.q.width, "/", op.v.width);
}

}  // namespace longstride::ops::cuda::sm90
