// The host's side of the Hopper backward kernels.
#pragma once

#include <algorithm>

#include "ops/attention/attention_sm90_backward.h"
#include "ops/attention/attention_sm90_key_gradient.cuh"
#include "ops/attention/attention_sm90_launch.cuh"
#include "ops/attention/attention_sm90_query_gradient.cuh"

namespace longstride::ops::cuda::sm90 {

template <class A, int kQk, int kV, bool kShort>
void query_gradient(device::Stream stream, const AttentionBackward<A>& op, const Line& line,
                    const RowNumbers& rows) {
  using Shape = QueryGradientShape<kQk, kV, kShort>;
  QueryGradientParams<A> p{};
  p.q = rows_map<A>(op.q, Shape::kRows);
  p.dout = rows_map<A>(op.dout, Shape::kRows);
  p.out = rows_map<A>(op.out, Shape::kRows);
  walk_queries<A>(p, op, line, Shape::kRows, Shape::kKeys);
  p.lse = op.lse.data;
  p.dq = op.dq;
  p.rows = rows;
  p.scale = op.scale;
  launch_each(stream, query_gradient_kernel<A, kQk, kV, kShort>, Shape::kThreads, Shape::kBytes, p);
  device::launched(stream, "attention_backward dq (Hopper) ", op.q.batch, "x", op.q.length, "x",
                   op.q.heads, "x", op.q.width, "/", op.v.width);
}

template <class A, int kQk, int kV>
void key_gradient(device::Stream stream, const AttentionBackward<A>& op, const Line& line,
                  const RowNumbers& rows) {
  using Shape = KeyGradientShape<kQk, kV>;
  KeyGradientParams<A> p{};
  const std::vector<KeyShape> shapes = shapes_of(line);
  for (std::size_t n = 0; n < shapes.size(); ++n) {
    p.shapes[n] = shapes[n];
    p.k[n] = keys_map<A>(op.k, shapes[n], kKeyTile);
    p.v[n] = keys_map<A>(op.v, shapes[n], kKeyTile);
  }
  p.q = rows_map<A>(op.q, kQueryTile);
  p.dout = rows_map<A>(op.dout, kQueryTile);
  p.parts = line.device_parts;
  p.passes = line.device_passes;
  p.pass_count = static_cast<std::int32_t>(line.passes->size());
  p.length = static_cast<std::int32_t>(op.q.length);
  p.order.tiles = 0;
  for (const HeadPass& pass : *line.passes)
    p.order.tiles = std::max(p.order.tiles, key_tiles(line.parts->data(), pass, p.length));
  p.order.heads = static_cast<std::int32_t>(op.q.batch * p.pass_count);
  p.order.group = heads_in_group(2 * op.q.length * (op.q.width + op.v.width), p.order.heads);
  p.dk = op.dk, p.dv = op.dv;
  p.rows = rows;
  p.scale = op.scale;
  launch_each(stream, key_gradient_kernel<A, kQk, kV>, Shape::kThreads, Shape::kBytes, p);
  device::launched(stream, "attention_backward dk, dv (Hopper) ", op.q.batch, "x", op.q.length, "x",
                   op.q.heads, "x", op.q.width, "/", op.v.width);
}

}  // namespace longstride::ops::cuda::sm90
