// The host's side of the forward kernel of short line patterns.
#pragma once

#include "ops/attention/attention_sm90_short_forward.cuh"
#include "ops/attention/attention_sm90_short_launch.cuh"

namespace longstride::ops::cuda::sm90 {

template <class A, int kQk, int kV, int kHeads>
void short_forward(device::Stream stream, const Attention<A>& op, const Line& line) {
  using Shape = ShortForwardShape<kQk, kV, kHeads>;
  ShortForwardParams<A> p{};
  p.q = short_map<kHeads>(op.q), p.k = short_map<kHeads>(op.k), p.v = short_map<kHeads>(op.v);
  p.out = op.out;
  p.lse = op.lse.data;
  p.scale = op.scale;
  walk_short<kHeads, Shape>(stream, short_forward_kernel<A, Shape>, p, op.q, line);
  device::launched(stream, "attention (Hopper, short) ", op.q.batch, "x", op.q.length, "x",
                   op.q.heads, "x", op.q.width, "/", op.v.width);
}

}  // namespace longstride::ops::cuda::sm90
