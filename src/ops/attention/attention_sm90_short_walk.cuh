// What the kernels of short line patterns share: what a thread block does, its rings of tiles.
#pragma once

#include "device/wgmma_n32_sm90.cuh"
#include "ops/attention/attention_sm90_common.cuh"
#include "ops/attention/attention_sm90_short_runs.h"

namespace longstride::ops::cuda::sm90 {

struct ShortWalk {
  const DevicePart* parts;  // on the device
  const HeadPass* passes;
  std::int32_t pass_count, length, tiles, run_tiles, runs;
};

// The work of this thread block: a run of tiles of a head (or of several that share tiles).
struct ShortWork {
  ShortPattern pattern;
  ShortRun run;
  std::int32_t head, batch;  // head: the first of the tile's
  __device__ static ShortWork of(const ShortWalk& walk, int heads_in_tile) {
    const std::int32_t sequences = walk.pass_count / heads_in_tile;
    const auto block = static_cast<std::int32_t>(blockIdx.x);
    const std::int32_t sequence = block / walk.runs;
    const HeadPass& pass = walk.passes[sequence % sequences * heads_in_tile];
    ShortWork work;
    work.pattern = short_pattern(walk.parts[pass.only_part]);
    work.run = short_run(work.pattern, block % walk.runs, walk.tiles, walk.run_tiles);
    work.head = pass.head;
    work.batch = sequence / sequences;
    return work;
  }
};

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)

// Use number n of a ring: where, and the parity of its turn there.
template <int kStages>
struct Turn {
  int stage;
  unsigned parity;
  __device__ explicit Turn(int n) : stage(n % kStages), parity(n / kStages & 1) {}
  __device__ void wait(std::uint64_t (&full)[kStages]) const {
    wait_for(address_of(&full[stage]), parity);
  }
  __device__ void wait_free(std::uint64_t (&free)[kStages]) const {
    wait_for(address_of(&free[stage]), parity ^ 1);
  }
};

template <int kCount>
__device__ void init(std::uint64_t (&barriers)[kCount], int arrivals) {
  for (std::uint64_t& barrier : barriers) barrier_init(address_of(&barrier), arrivals);
}

// kWidth columns of one 64-position tile, in boxes of 64, to `to`.
template <int kWidth>
__device__ void load_tile(Address to, const CUtensorMap& map, Address full, std::int32_t tile,
                          std::int32_t head, std::int32_t batch) {
#pragma unroll
  for (int c = 0; c < kWidth / 64; ++c)
    load_box(to + static_cast<Address>(c * kWalkTile * kRowBytes), map, full, 64 * c,
             tile * kWalkTile, 0, head, batch);
}

// The columns of head h of a tile, kWidth each: as a factor along the rows, and across them.
template <int kWidth>
__device__ std::uint64_t along(std::uint64_t tile, int h, int step) {
  return step_along(tile, h * (kWidth / 16) + step, kWalkTile);
}
template <int kWidth>
__device__ std::uint64_t across(std::uint64_t tile, int h, int step) {
  return step_across(tile, step) + static_cast<std::uint64_t>(h * kWidth * 2 >> 4);
}

#endif

}  // namespace longstride::ops::cuda::sm90
