// The host's side of the backward kernel of short line patterns.
#pragma once

#include "base/integers.h"
#include "ops/attention/attention_sm90_maps.h"
#include "ops/attention/attention_sm90_short.h"
#include "ops/attention/attention_sm90_short_backward.cuh"

namespace longstride::ops::cuda::sm90 {

template <class A, int kQk, int kV, int kHeads>
void short_backward(device::Stream stream, const AttentionBackward<A>& op, const Line& line) {
  using Shape = ShortBackwardShape<kQk, kV, kHeads>;
  ShortBackwardParams<A> p{};
  const auto map = [](const Heads<const A>& x) {
    return rows_map<A>(
        {x.data, x.batch, x.length, x.heads / kHeads, x.width * kHeads, x.row_stride}, kWalkTile);
  };
  p.q = map(op.q), p.k = map(op.k), p.v = map(op.v), p.dout = map(op.dout), p.out = map(op.out);
  p.parts = line.device_parts;
  p.passes = line.device_passes;
  p.pass_count = static_cast<std::int32_t>(line.passes->size());
  p.length = static_cast<std::int32_t>(op.q.length);
  p.tiles = static_cast<std::int32_t>(ceil_div(op.q.length, kWalkTile));
  const std::int64_t sequences = op.q.batch * p.pass_count / kHeads;
  p.run_tiles = tiles_in_run(sequences, p.tiles, device::multiprocessors());
  p.runs = static_cast<std::int32_t>(ceil_div(p.tiles, p.run_tiles));
  p.lse = op.lse.data;
  p.dq = op.dq, p.dk = op.dk, p.dv = op.dv;
  p.scale = op.scale;
  const auto kernel = short_backward_kernel<A, Shape>;
  device::check(
      cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, Shape::kBytes),
      "attention_backward (Hopper)");
  kernel<<<static_cast<unsigned>(sequences * p.runs), Shape::kThreads, Shape::kBytes, stream>>>(p);
  device::launched(stream, "attention_backward (Hopper, short) ", op.q.batch, "x", op.q.length, "x",
                   op.q.heads, "x", op.q.width, "/", op.v.width);
}

}  // namespace longstride::ops::cuda::sm90
