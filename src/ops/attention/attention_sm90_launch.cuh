// What the host does before any of the Hopper attention kernels.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "base/integers.h"
#include "ops/attention/attention_sm90_maps.h"

namespace longstride::ops::cuda::sm90 {

// As many blocks as fit the card; each takes works of p.order in turn.
template <class Kernel, class Params>
void launch_each(device::Stream stream, Kernel kernel, int threads, int bytes, const Params& p) {
  device::check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes),
                "attention (Hopper)");
  const auto blocks = std::min(p.order.size(), device::multiprocessors());
  kernel<<<static_cast<unsigned>(blocks), static_cast<unsigned>(threads),
           static_cast<std::size_t>(bytes), stream>>>(p);
}

// Of kernels whose works are tiles of `rows` queries, which see tiles of `keys` keys.
template <class A, class Params, class Op>
void walk_queries(Params& p, const Op& op, const Line& line, int rows, int keys) {
  const std::vector<KeyShape> shapes = shapes_of(line);
  for (std::size_t n = 0; n < shapes.size(); ++n) {
    p.keys.shapes[n] = shapes[n];
    p.keys.k[n] = keys_map<A>(op.k, shapes[n], keys);
    p.keys.v[n] = keys_map<A>(op.v, shapes[n], keys);
  }
  p.keys.parts = line.device_parts;
  p.keys.passes = line.device_passes;
  p.keys.pass_count = static_cast<std::int32_t>(line.passes->size());
  p.keys.length = static_cast<std::int32_t>(op.q.length);
  p.order.tiles = static_cast<std::int32_t>(ceil_div(op.q.length, rows));
  p.order.heads = static_cast<std::int32_t>(op.q.batch * p.keys.pass_count);
  p.order.group = heads_in_group(2 * op.q.length * (op.k.width + op.v.width), p.order.heads);
}

}  // namespace longstride::ops::cuda::sm90
