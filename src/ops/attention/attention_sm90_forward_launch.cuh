// The host's side of the Hopper forward kernel.
#pragma once

#include <algorithm>
#include <utility>

#include "base/integers.h"
#include "ops/attention/attention_sm90_forward.cuh"
#include "ops/attention/attention_sm90_forward.h"
#include "ops/attention/attention_sm90_launch.cuh"

namespace longstride::ops::cuda::sm90 {

template <class A, int kQk, int kV, bool kShort>
void forward(device::Stream stream, const Attention<A>& op, const Line& line) {
  using Shape = ForwardShape<kQk, kV, kShort>;
  ForwardParams<A> p{};
  p.q = rows_map<A>(op.q, Shape::kRows);
  walk_queries<A>(p, op, line, Shape::kRows, Shape::kKeys);
  p.out = op.out;
  p.lse = op.lse.data;
  p.scale = op.scale;
  launch_each(stream, forward_kernel<A, kQk, kV, kShort>, Shape::kThreads, Shape::kBytes, p);
  device::launched(stream, "attention (Hopper) ", op.q.batch, "x", op.q.length, "x", op.q.heads,
                   "x", op.q.width, "/", op.v.width);
}

}  // namespace longstride::ops::cuda::sm90
