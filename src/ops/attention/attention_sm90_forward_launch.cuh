// The host's side of the Hopper forward kernel.
#pragma once

#include <algorithm>
#include <utility>

#include "base/integers.h"
#include "ops/attention/attention_sm90_forward.cuh"
#include "ops/attention/attention_sm90_forward.h"
#include "ops/attention/attention_sm90_maps.h"

namespace longstride::ops::cuda::sm90 {

template <class A, int kQk, int kV, bool kShort>
void forward(device::Stream stream, const Attention<A>& op, const Line& line) {
  using Shape = ForwardShape<kQk, kV, kShort>;
  ForwardParams<A> p{};
  p.q = rows_map<A>(op.q, Shape::kRows);
  const std::vector<KeyShape> shapes = shapes_of(line);
  for (std::size_t n = 0; n < shapes.size(); ++n) {
    p.keys.shapes[n] = shapes[n];
    p.keys.k[n] = keys_map<A>(op.k, shapes[n], Shape::kKeys);
    p.keys.v[n] = keys_map<A>(op.v, shapes[n], Shape::kKeys);
  }
  p.keys.parts = line.device_parts;
  p.keys.passes = line.device_passes;
  p.keys.pass_count = static_cast<std::int32_t>(line.passes->size());
  p.keys.length = static_cast<std::int32_t>(op.q.length);
  p.order.tiles = static_cast<std::int32_t>(ceil_div(op.q.length, Shape::kRows));
  p.order.heads = static_cast<std::int32_t>(op.q.batch * p.keys.pass_count);
  p.order.group = heads_in_group(2 * op.q.length * (op.k.width + op.v.width), p.order.heads);
  p.out = op.out;
  p.lse = op.lse.data;
  p.scale = op.scale;

  const auto kernel = forward_kernel<A, kQk, kV, kShort>;
  device::check(
      cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, Shape::kBytes),
      "attention (Hopper)");
  const auto blocks = std::min(p.order.size(), device::multiprocessors());
  kernel<<<static_cast<unsigned>(blocks), Shape::kThreads, Shape::kBytes, stream>>>(p);
  device::launched(stream, "attention (Hopper) ", op.q.batch, "x", op.q.length, "x", op.q.heads,
                   "x", op.q.width, "/", op.v.width);
}

}  // namespace longstride::ops::cuda::sm90
