// Products on Hopper whose rows end in what is done to the residual stream, d = 256 columns
// and a sum of K <= 512 terms:
//
//   forward   h += dropout(x W + b),  rstd, xhat = norm of the row of h
//   backward  g = dy W^T,  dh += rstd (g - mean(g) - xhat mean(g xhat)),  dbranch = dropout'(dh)
//
// A cluster has the rows of a tile, each of its blocks 128 columns of them: it keeps these columns
// of W in shared memory for good (at most 128 KB) and streams rows of x past them; each block loads
// its share of a tile of x for all. What a row's statistics need of the other blocks (8 bytes a
// row) goes from shared memory to shared memory, and the word that it came with it: no fence, no
// barrier of the cluster. Two groups of four warps have tiles of their own and buffers of their
// own: while one waits for memory, the other multiplies or writes.
//
// Work 2 R K d FLOPs; least bytes a row: 2 K + d (8 + 2) forward, 2 K + d (8 + 2 + 2) backward, 4 d
// less than a product and a norm apart. Bound: memory (d = 256, K = 512: 1.2 us of products a tile
// and group against 9.7 us of its bytes at 3 TB/s).
//
// The stream's tile is read before the product (64 registers a thread), and the draws of dropout
// are made then too: both run under the loads of x. A thread ends with 4 neighbouring columns of
// each 16, so every access to memory is of whole sectors: W^T comes in such an order, forward two
// threads trade.
#pragma once

#include <algorithm>
#include <cstdint>

#include "device/cluster_sm90.cuh"
#include "device/cuda.h"
#include "device/wgmma_sm90.cuh"
#include "ops/linear/row_end_sm90.h"
#include "ops/linear/row_share_sm90.cuh"

namespace longstride::ops::cuda::row_end {

inline constexpr int kThreads = 384, kGroup = 128, kGroups = 2;
inline constexpr int kDeep = 64, kMostStages = 8;
inline constexpr int kWeightBytes = kColumns * kDeep * 2, kStageBytes = kRows * kDeep * 2;
inline constexpr int kDataBytes = 13 * kWeightBytes;  // weights and buffers of x
inline constexpr int kBlocks = 2;                     // of a cluster
inline constexpr int kPartsAt = kDataBytes;
inline constexpr int kBarriersAt = kPartsAt + kGroups * 2 * kBlocks * kRows * 8;
inline constexpr int kGroupBarriers = 2 * kMostStages + 2;
inline constexpr int kBiasAt = kBarriersAt + 512;
inline constexpr int kShared = kBiasAt + kColumns * 4 + 1024;  // the last: to align
static_assert((kGroups * kGroupBarriers + 1) * 8 <= 512 && kShared <= 232448);

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)

using device::sm90::Address;

// Where things lie in shared memory, and which tiles this block takes.
struct Place {
  Address base;
  int deep, stages;      // tiles of W, buffers of x a group
  unsigned rank;         // in the cluster
  int first, step, end;  // of the tiles; groups take turns

  __device__ Address weights(int k) const { return base + k * kWeightBytes; }
  __device__ Address x(int group, int stage) const {
    return base + deep * kWeightBytes + (group * stages + stage) * kStageBytes;
  }
  // What the blocks tell of the rows of a tile; two such tables in turn.
  __device__ Address parts(int group, int turn) const {
    return base + kPartsAt + (group * 2 + turn) * kBlocks * kRows * 8;
  }
  __device__ Address bias(int column) const { return base + kBiasAt + column * 4; }
  __device__ Address full(int group, int stage) const {
    return base + kBarriersAt + (group * kGroupBarriers + stage) * 8;
  }
  __device__ Address empty(int group, int stage) const { return full(group, kMostStages + stage); }
  __device__ Address told(int group, int turn) const { return full(group, 2 * kMostStages + turn); }
  __device__ Address weights_full() const { return full(kGroups, 0); }
};

// A buffer of a group's ring, and the parity of its phase.
struct Turn {
  int stage = 0;
  unsigned parity = 0;
  __device__ void forward(int stages) {
    if (++stage == stages) stage = 0, parity ^= 1u;
  }
};

template <bool kForward>
__device__ void load_weights(const Place& at, const CUtensorMap& map) {
  using namespace device::sm90;
  const int slice = static_cast<int>(at.rank);
  arrive_expecting(at.weights_full(), at.deep * kWeightBytes);
  for (int k = 0; k < at.deep; ++k) {
    if constexpr (kForward) {
      load_box(at.weights(k), map, at.weights_full(), slice * kColumns, k * kDeep);
      load_box(at.weights(k) + kWeightBytes / 2, map, at.weights_full(), slice * kColumns + 64,
               k * kDeep);
    } else {
      load_box(at.weights(k), map, at.weights_full(), k * kDeep, 0, 0, 0, slice * kColumns / 16);
    }
  }
}

__device__ void load_rows(const Place& at, const CUtensorMap& map, int group) {
  using namespace device::sm90;
  const int rank = static_cast<int>(at.rank);
  Turn turn;
  for (int tile = at.first + group * at.step; tile < at.end; tile += kGroups * at.step)
    for (int k = 0; k < at.deep; ++k, turn.forward(at.stages)) {
      wait_for(at.empty(group, turn.stage), turn.parity ^ 1u);
      arrive_expecting(at.full(group, turn.stage), kStageBytes);
      load_box_to((1u << kBlocks) - 1, at.x(group, turn.stage) + rank * (kStageBytes / kBlocks),
                  map, at.full(group, turn.stage), k * kDeep,
                  tile * kRows + rank * (kRows / kBlocks));
    }
}

// One step of 64 of the sum; returns with it under way.
template <class A, bool kForward>
__device__ void multiply(float (&d)[64], Address x, Address weights, bool accumulate) {
  using namespace device::sm90;
  const std::uint64_t left = tile_at(x, 0), right = tile_at(weights, kWeightBytes / 2);
  fence();
#pragma unroll
  for (int step = 0; step < 4; ++step)
    product<A, kForward>(d, step_along(left, step, kRows),
                         kForward ? step_across(right, step) : step_along(right, step, kColumns),
                         accumulate || step > 0);
  commit();
}

// A group's product of a tile.
template <class A, bool kForward>
__device__ void sum(float (&d)[64], const Place& at, Turn& turn, int group, int lane) {
  using namespace device::sm90;
  const auto release = [&](int stage) {
    if (lane < kBlocks) arrive_in(static_cast<unsigned>(lane), at.empty(group, stage));
  };
  int before = 0;
  for (int k = 0; k < at.deep; ++k) {
    wait_for(at.full(group, turn.stage), turn.parity);
    multiply<A, kForward>(d, at.x(group, turn.stage), at.weights(k), k > 0);
    if (k > 0) {
      wait<1>();
      release(before);
    }
    before = turn.stage;
    turn.forward(at.stages);
  }
  wait<0>();
  pin(d);
  release(before);
}

template <class A>
__device__ void end_forward(const float (&d)[64], float (&h)[2][8][4],
                            const std::uint32_t (&kept)[2], Address bias, const Share& share,
                            const RowEnds<A>& op, const Exchange<kBlocks>& exchange, int lane) {
  const Lines<float> stream(share, op.stream, op.stream_stride);
  const Lines<A> xhat(share, op.xhat, op.xhat_stride);
  float2 mine[2], all[2][kBlocks];
#pragma unroll
  for (int below = 0; below < 2; ++below) {
#pragma unroll
    for (int m = 0; m < 8; ++m) {
      float v[4];
      gather<true>(v, d, below, m, lane);
      float biases[4];
      read4(biases, bias + 64 * m);
#pragma unroll
      for (int i = 0; i < 4; ++i)
        h[below][m][i] = __fadd_rn(
            h[below][m][i], dropped(v[i] + biases[i], kept[below], 4 * m + i, op.draws.scale));
    }
    const Part part = part_of<8>([&](int m, int i) -> float { return h[below][m][i]; });
    mine[below] = {part.mean, part.squares};
  }
  exchange.tell(mine);
#pragma unroll
  for (int below = 0; below < 2; ++below)
#pragma unroll
    for (int m = 0; m < 8; ++m) write(stream.at[below] + 16 * m, h[below][m], share.has(below));
  exchange.hear(all);
#pragma unroll
  for (int below = 0; below < 2; ++below) {
    Part parts[kBlocks];
#pragma unroll
    for (int of = 0; of < kBlocks; ++of) parts[of] = {all[below][of].x, all[below][of].y};
    const Statistics row = statistics_of<8>(parts, op.eps);
#pragma unroll
    for (int m = 0; m < 8; ++m) {
      float v[4];
#pragma unroll
      for (int i = 0; i < 4; ++i) v[i] = normalised(h[below][m][i], row);
      write(xhat.at[below] + 16 * m, v, share.has(below));
    }
    if (op.rstd != nullptr && share.column == 0 && share.has(below))
      op.rstd[share.row + 8 * below] = row.rstd;
  }
}

template <class A>
__device__ void end_backward(const float (&d)[64], float (&dh)[2][8][4], const uint2 (&xhat)[2][8],
                             const float (&rstd)[2], const std::uint32_t (&kept)[2],
                             const Share& share, const RowEnds<A>& op,
                             const Exchange<kBlocks>& exchange) {
  const Lines<float> stream(share, op.stream, op.stream_stride);
  const Lines<A> dbranch(share, op.dbranch, op.dbranch_stride);
  float2 mine[2], all[2][kBlocks];
#pragma unroll
  for (int below = 0; below < 2; ++below) {
    float sums[4] = {}, products[4] = {};
#pragma unroll
    for (int m = 0; m < 8; ++m) {
      const float2 x0 = unpack<A>(xhat[below][m].x), x1 = unpack<A>(xhat[below][m].y);
      const float x[4] = {x0.x, x0.y, x1.x, x1.y};
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        sums[i] += d[place_of(below, m, i)];
        products[i] = fmaf(d[place_of(below, m, i)], x[i], products[i]);
      }
    }
    mine[below] = {quad_sum(sum4(sums)), quad_sum(sum4(products))};
  }
  exchange.tell(mine);
  exchange.hear(all);
#pragma unroll
  for (int below = 0; below < 2; ++below) {
    float mean = 0, along = 0;
#pragma unroll
    for (int of = 0; of < kBlocks; ++of) mean += all[below][of].x, along += all[below][of].y;
    mean *= 1.0f / (kColumns * kBlocks), along *= 1.0f / (kColumns * kBlocks);
#pragma unroll
    for (int m = 0; m < 8; ++m) {
      const float2 x0 = unpack<A>(xhat[below][m].x), x1 = unpack<A>(xhat[below][m].y);
      const float x[4] = {x0.x, x0.y, x1.x, x1.y};
      float v[4];
#pragma unroll
      for (int i = 0; i < 4; ++i)
        v[i] = fmaf(rstd[below], d[place_of(below, m, i)] - mean - x[i] * along, dh[below][m][i]);
      write(stream.at[below] + 16 * m, v, share.has(below));
#pragma unroll
      for (int i = 0; i < 4; ++i) v[i] = dropped(v[i], kept[below], 4 * m + i, op.draws.scale);
      write(dbranch.at[below] + 16 * m, v, op.dbranch != nullptr && share.has(below));
    }
  }
}

template <class A, bool kForward>
__device__ void compute(const Place& at, const RowEnds<A>& op, int group) {
  const int thread = threadIdx.x % kGroup, lane = thread % 32, u = lane % 4;
  const int column = kForward ? first_column(u) : 4 * u;
  const DrawKey key(op.draws);
  Turn turn;
  int tiles = 0;
  device::sm90::wait_for(at.weights_full(), 0);
  for (int tile = at.first + group * at.step; tile < at.end; tile += kGroups * at.step, ++tiles) {
    const Share share = {std::int64_t{tile} * kRows + thread / 32 * 16 + lane / 4, op.rows,
                         static_cast<int>(at.rank) * kColumns + column};
    float stream[2][8][4];
    const Lines<const float> lines(share, op.stream, op.stream_stride);
#pragma unroll
    for (int n = 0; n < 16; ++n) read(stream[n / 8][n % 8], lines.at[n / 8] + n % 8 * 16);
    [[maybe_unused]] uint2 xhat[2][8];
    [[maybe_unused]] float rstd[2];
    if constexpr (!kForward) {
      const Lines<const A> kept_lines(share, op.xhat_in, op.xhat_stride);
#pragma unroll
      for (int n = 0; n < 16; ++n) xhat[n / 8][n % 8] = read(kept_lines.at[n / 8] + n % 8 * 16);
#pragma unroll
      for (int below = 0; below < 2; ++below)
        rstd[below] = op.rstd_in[min(share.row + 8 * below, op.rows - 1)];
    }
    std::uint32_t kept[2];
    draw(kept[0], op.draws, key, share, kColumns * kBlocks, 0);
    draw(kept[1], op.draws, key, share, kColumns * kBlocks, 1);
    float d[64];
    sum<A, kForward>(d, at, turn, group, lane);
    const Exchange<kBlocks> exchange = {at.parts(group, tiles % 2),
                                        at.told(group, tiles % 2),
                                        static_cast<unsigned>(tiles / 2 % 2),
                                        0,
                                        at.rank,
                                        thread};
    if constexpr (kForward)
      end_forward<A>(d, stream, kept, at.bias(column), share, op, exchange, lane);
    else
      end_backward<A>(d, stream, xhat, rstd, kept, share, op, exchange);
  }
}

#endif

// Grid: clusters of kBlocks, the columns of a row; they take tiles of rows in turn.
template <class A, bool kForward>
__global__ void __launch_bounds__(kThreads, 1)
    kernel(const __grid_constant__ CUtensorMap left, const __grid_constant__ CUtensorMap weights,
           const RowEnds<A> op, int deep) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  using namespace device::sm90;
  extern __shared__ unsigned char shared[];
  const Address start = address_of(shared);
  Place at;
  at.base = (start + 1023u) & ~1023u;
  at.deep = deep;
  at.stages = min((kDataBytes - deep * kWeightBytes) / (kGroups * kStageBytes), kMostStages);
  at.rank = cluster_rank();
  at.first = static_cast<int>(blockIdx.x) / kBlocks;
  at.step = static_cast<int>(gridDim.x) / kBlocks;
  at.end = static_cast<int>((op.rows + kRows - 1) / kRows);
  float* const bias = reinterpret_cast<float*>(shared + (at.base - start) + kBiasAt);
  if (threadIdx.x < kColumns)
    bias[threadIdx.x] = op.bias != nullptr ? op.bias[at.rank * kColumns + threadIdx.x] : 0.0f;
  if (threadIdx.x == 0) {
    for (int group = 0; group < kGroups; ++group) {
      for (int stage = 0; stage < at.stages; ++stage) {
        barrier_init(at.full(group, stage), 1);
        barrier_init(at.empty(group, stage), 4 * kBlocks);  // a group's warps, of all blocks
      }
      barrier_init(at.told(group, 0), 1);
      barrier_init(at.told(group, 1), 1);
    }
    barrier_init(at.weights_full(), 1);
    barriers_ready();
  }
  cluster_sync();
  if (threadIdx.x < kGroup) {
    give_registers<40>();
    const int warp = static_cast<int>(threadIdx.x) / 32;
    if (threadIdx.x % 32 == 0) {
      if (warp < kGroups)
        load_rows(at, left, warp);
      else if (warp == kGroups)
        load_weights<kForward>(at, weights);
    }
  } else {
    take_registers<232>();
    const int group = __shfl_sync(0xffffffffu, static_cast<int>(threadIdx.x) / kGroup, 0) - 1;
    compute<A, kForward>(at, op, group);
  }
  __syncwarp();
  cluster_leave();  // other blocks arrive at barriers of this one
#endif
}

template <class A, bool kForward>
void launch(device::Stream stream, const CUtensorMap& left, const CUtensorMap& weights,
            const RowEnds<A>& ends, int deep) {
  const auto entry = kernel<A, kForward>;
  cudaLaunchAttribute cluster = {};
  cluster.id = cudaLaunchAttributeClusterDimension;
  cluster.val.clusterDim = {kBlocks, 1, 1};
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(kBlocks);
  config.blockDim = dim3(kThreads);
  config.dynamicSmemBytes = kShared;
  config.stream = stream;
  config.attrs = &cluster;
  config.numAttrs = 1;
  static const int most = [&] {  // clusters at a time; some multiprocessors may have no neighbours
    int clusters = 0;
    device::check(cudaFuncSetAttribute(entry, cudaFuncAttributeMaxDynamicSharedMemorySize, kShared),
                  "row end: shared memory");
    device::check(cudaOccupancyMaxActiveClusters(&clusters, entry, &config), "row end: clusters");
    return clusters;
  }();
  const auto tiles = static_cast<int>((ends.rows + kRows - 1) / kRows);
  config.gridDim = dim3(static_cast<unsigned>(kBlocks * std::clamp(most, 1, tiles)));
  device::check(cudaLaunchKernelEx(&config, entry, left, weights, ends, deep), "row end");
  device::launched(stream, "row end ", ends.rows, "x", deep * kDeep, "x", kBlocks * kColumns);
}

}  // namespace longstride::ops::cuda::row_end
