// The host's side of the kernels of short line patterns.
#pragma once

#include "base/integers.h"
#include "ops/attention/attention_sm90_maps.h"
#include "ops/attention/attention_sm90_short.h"
#include "ops/attention/attention_sm90_short_walk.cuh"

namespace longstride::ops::cuda::sm90 {

// Tiles of kHeads heads side by side.
template <int kHeads, class A>
CUtensorMap short_map(const Heads<const A>& x) {
  return rows_map<A>({x.data, x.batch, x.length, x.heads / kHeads, x.width * kHeads, x.row_stride},
                     kWalkTile);
}

// A thread block a run.
template <int kHeads, class Shape, class Kernel, class Params, class A>
void walk_short(device::Stream stream, Kernel kernel, Params& p, const Heads<const A>& q,
                const Line& line) {
  ShortWalk& walk = p.walk;
  walk.parts = line.device_parts;
  walk.passes = line.device_passes;
  walk.pass_count = static_cast<std::int32_t>(line.passes->size());
  walk.length = static_cast<std::int32_t>(q.length);
  walk.tiles = static_cast<std::int32_t>(ceil_div(q.length, kWalkTile));
  const std::int64_t sequences = q.batch * walk.pass_count / kHeads;
  walk.run_tiles = tiles_in_run(sequences, walk.tiles, device::multiprocessors());
  walk.runs = static_cast<std::int32_t>(ceil_div(walk.tiles, walk.run_tiles));
  device::check(
      cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, Shape::kBytes),
      "attention (Hopper, short)");
  kernel<<<static_cast<unsigned>(sequences * walk.runs), Shape::kThreads, Shape::kBytes, stream>>>(
      p);
}

}  // namespace longstride::ops::cuda::sm90
