// Products with a short sum on Hopper, with what follows them fused in: D[R, N] = X[R, K] B[K, N],
// K <= 512, B = W or W^T, then one of `End`.
//
// A block keeps its 128 columns of B in shared memory for good (at most 128 KB) and streams tiles
// of X through the rest; two neighbouring blocks (a cluster) take the same rows, each loads half of
// a tile of X for both. Two groups of four warps take turns: while one multiplies its tile [128,
// 128], the other finishes and writes the one before, so the tensor cores do not wait for the ends.
//
// Work 2 R N K FLOPs; least bytes: X, B and the outputs once (and `pre`). With K = 512 and one
// output the tensor cores bind (734 TFLOP/s measured), with two outputs or K = 256 the memory. From
// L2 a multiprocessor takes 16 KB for 2 x 128 x 128 x 512 FLOPs.
//
// B = W^T: its rows come in an order in which a thread's 2-column pieces of four products are 8
// neighbouring columns; B = W: four threads trade words for that. So each thread reads and writes
// 16 bytes at once and no result goes through shared memory.
#pragma once

#include <cstdint>

#include "device/cluster_sm90.cuh"
#include "device/cuda.h"
#include "device/early_launch_sm90.cuh"
#include "device/wgmma_sm90.cuh"
#include "ops/linear/resident_sm90.h"
#include "ops/linear/words_sm90.cuh"

namespace longstride::ops::cuda::resident {

inline constexpr int kTile = 128, kDeep = 64;         // rows and columns of D; of K at once
inline constexpr int kBytes = 16384;                  // of a tile [128, 64] of X or B
inline constexpr int kTiles = 14;                     // of both that fit
inline constexpr int kMostStages = 8, kMostDeep = 8;  // K <= 8 * 64
inline constexpr int kBarriersAt = kTiles * kBytes, kBiasAt = kBarriersAt + 256;
inline constexpr int kShared = kBiasAt + kTile * 4 + 1024;  // the last: to align
inline constexpr int kThreads = 384, kGroup = 128;

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)

using device::sm90::Address;

// Where things lie in shared memory, and which tiles this block takes.
struct Place {
  Address base;
  int deep, stages;      // tiles of B, buffers of X
  int slice, pairs;      // of 128 columns; of clusters with the same rows
  unsigned rank;         // in the cluster
  int first, step, end;  // of the tiles of rows

  __device__ Address weights(int k) const { return base + k * kBytes; }
  __device__ Address x(int stage) const { return base + (deep + stage) * kBytes; }
  __device__ Address full(int stage) const { return base + kBarriersAt + stage * 8; }
  __device__ Address empty(int stage) const { return full(kMostStages + stage); }
  __device__ Address weights_full() const { return full(2 * kMostStages); }
};

// Stage and parity of the next tile of X in its ring.
struct Turn {
  int stage = 0;
  unsigned parity = 0;
  __device__ void forward(int count, int stages) {
    stage += count;
    while (stage >= stages) {
      stage -= stages;
      parity ^= 1u;
    }
  }
};

// A box to L2, ahead of load_box.
__device__ inline void prefetch_box(const CUtensorMap& map, int at0, int at1) {
  asm volatile("cp.async.bulk.prefetch.tensor.2d.L2.global.tile [%0, {%1, %2}];" ::"l"(&map),
               "r"(at0), "r"(at1)
               : "memory");
}

// With two outputs under way memory answers late, and L2 is told a tile ahead what will be wanted
// (by one of the clusters that take the same rows); with one output that costs more than it gains.
template <bool kAcross, bool kPrefetch>
__device__ void load(const Place& at, const CUtensorMap& x_map, const CUtensorMap& b_map) {
  using namespace device::sm90;
  arrive_expecting(at.weights_full(), at.deep * kBytes);
  for (int k = 0; k < at.deep; ++k) {
    if constexpr (kAcross) {
      load_box(at.weights(k), b_map, at.weights_full(), at.slice * kTile, k * kDeep);
      load_box(at.weights(k) + kBytes / 2, b_map, at.weights_full(), at.slice * kTile + 64,
               k * kDeep);
    } else {
      load_box(at.weights(k), b_map, at.weights_full(), k * kDeep, 0, 0, 0, at.slice * kTile / 32);
    }
  }
  Turn turn;
  for (int tile = at.first; tile < at.end; tile += at.step)
    for (int k = 0; k < at.deep; ++k, turn.forward(1, at.stages)) {
      wait_for(at.empty(turn.stage), turn.parity ^ 1u);
      arrive_expecting(at.full(turn.stage), kBytes);
      load_box_to(3, at.x(turn.stage) + at.rank * (kBytes / 2), x_map, at.full(turn.stage),
                  k * kDeep, tile * kTile + static_cast<int>(at.rank) * 64);
      const int next = tile + at.step;
      if (kPrefetch && k % at.pairs == at.slice / 2 && next < at.end)
        prefetch_box(x_map, k * kDeep, next * kTile + static_cast<int>(at.rank) * 64);
    }
}

// One step of 64 of the sum, both halves of the rows; returns with it under way.
template <class A, bool kAcross>
__device__ void multiply(float (&d)[2][64], Address x, Address weights, bool accumulate) {
  using namespace device::sm90;
  const std::uint64_t upper = tile_at(x, 0), lower = tile_at(x + kBytes / 2, 0);
  const std::uint64_t right = tile_at(weights, kBytes / 2);
  fence();
#pragma unroll
  for (int step = 0; step < 4; ++step) {
    const std::uint64_t b = kAcross ? step_across(right, step) : step_along(right, step, kTile);
    product<A, kAcross>(d[0], step_along(upper, step, 64), b, accumulate || step > 0);
    product<A, kAcross>(d[1], step_along(lower, step, 64), b, accumulate || step > 0);
  }
  commit();
}

// 16 bytes of each of the two rows of the four pieces of 32 columns of both halves.
struct Ahead {
  uint4 at[2][4][2];
};

// This thread's rows of a tile and its 8 columns of each piece.
template <class A>
struct Corner {
  std::int64_t row;  // and row + 8, of either half 64 more
  int column;        // of the first piece
  std::int64_t rows;
  int columns;
  __device__ bool has(int half, int piece, int below) const {
    return row + half * 64 + below * 8 < rows && column + piece * 32 < columns;
  }
  template <class T>
  __device__ T* in(T* data, std::int64_t stride, int half, int piece, int below) const {
    return data + (row + half * 64 + below * 8) * stride + column + piece * 32;
  }
};

template <class A>
__device__ void read_ahead(Ahead& pre, const Corner<A>& corner, const Ends<A>& ends) {
#pragma unroll
  for (int half = 0; half < 2; ++half)
#pragma unroll
    for (int piece = 0; piece < 4; ++piece)
#pragma unroll
      for (int below = 0; below < 2; ++below) {
        uint4& to = pre.at[half][piece][below];
        to = uint4{0, 0, 0, 0};
        if (corner.has(half, piece, below))
          to = *reinterpret_cast<const uint4*>(
              corner.in(ends.pre, ends.pre_stride, half, piece, below));
      }
}

// Without a branch, so that the compiler mixes the pieces: a warp has its scheduler to itself here,
// and only what is independent fills it.
template <class A>
__device__ void write(const std::uint32_t (&word)[4], const Corner<A>& corner, A* data,
                      std::int64_t stride, int half, int piece, int below) {
  const bool wanted = data != nullptr && corner.has(half, piece, below);
  asm volatile(
      "{\n.reg .pred wanted;\nsetp.ne.b32 wanted, %0, 0;\n"
      "@wanted st.global.v4.b32 [%1], {%2, %3, %4, %5};\n}\n" ::"r"(static_cast<int>(wanted)),
      "l"(__cvta_generic_to_global(corner.in(data, stride, half, piece, below))), "r"(word[0]),
      "r"(word[1]), "r"(word[2]), "r"(word[3]));
}

// Of one row of one piece: 2 columns of each of four products, from d[4 g + 2 below].
template <class A, bool kAcross, End kEnd>
__device__ void finish_row(const float* d, const float* bias, const uint4& before,
                           const Corner<A>& corner, const Ends<A>& ends, int half, int piece,
                           int below, int lane) {
  const int u = lane % 4;
  std::uint32_t first[4], second[4];
  const std::uint32_t pre[4] = {before.x, before.y, before.z, before.w};
#pragma unroll
  for (int g = 0; g < 4; ++g) {
    const int column = piece * 32 + (kAcross ? g * 8 + u * 2 : u * 8 + g * 2);
    float2 v = {d[4 * g + 2 * below], d[4 * g + 2 * below + 1]};
    if constexpr (kEnd == End::kActivationGradient) {
      const float2 x = unpack<A>(pre[g]);
      const float s0 = gate(x.x), s1 = gate(x.y), y0 = x.x * s0, y1 = x.y * s1;
      first[g] = pack<A>(v.x * (s0 + 1.702f * y0 * (1 - s0)), v.y * (s1 + 1.702f * y1 * (1 - s1)));
      second[g] = pack<A>(y0, y1);
    } else {
      const float2 b = *reinterpret_cast<const float2*>(bias + column);
      v.x += b.x, v.y += b.y;
      if constexpr (kEnd == End::kFloat) {
        const std::int64_t row = corner.row + half * 64 + below * 8;
        const int n = corner.column - u * 8 + column;
        if (row < corner.rows && n < corner.columns)
          *reinterpret_cast<float2*>(ends.sums + row * ends.first_stride + n) = v;
      } else {
        first[g] = pack<A>(v.x, v.y);
      }
    }
  }
  if constexpr (kEnd != End::kFloat) {
    if constexpr (kAcross) transpose(first, lane);
    write(first, corner, ends.first, ends.first_stride, half, piece, below);
  }
  if constexpr (kEnd == End::kActivation) {  // of what was stored, so after the trade of words
#pragma unroll
    for (int g = 0; g < 4; ++g) {
      const float2 x = unpack<A>(first[g]);
      second[g] = pack<A>(x.x * gate(x.x), x.y * gate(x.y));
    }
  }
  if constexpr (kEnd == End::kActivation || kEnd == End::kActivationGradient)
    write(second, corner, ends.second, ends.second_stride, half, piece, below);
}

template <class A, bool kAcross, End kEnd>
__device__ void compute(const Place& at, const float* bias, const Ends<A>& ends, int group) {
  using namespace device::sm90;
  const int thread = threadIdx.x % kGroup, lane = thread % 32;
  const auto release = [&](int stage) {
    if (lane < 2) arrive_in(lane, at.empty(stage));
  };
  Turn turn;
  turn.forward(group * at.deep, at.stages);
  wait_for(at.weights_full(), 0);
  if (group == 1) pass(1, 2 * kGroup);  // group 0 begins
  for (int tile = at.first + group * at.step; tile < at.end; tile += 2 * at.step) {
    const Corner<A> corner = {std::int64_t{tile} * kTile + thread / 32 * 16 + lane / 4,
                              at.slice * kTile + lane % 4 * 8, ends.rows, ends.columns};
    Ahead pre = {};
    if constexpr (kEnd == End::kActivationGradient) read_ahead(pre, corner, ends);
    float d[2][64];
    meet(1 + group, 2 * kGroup);
    int before = 0;
    for (int k = 0; k < at.deep; ++k) {
      wait_for(at.full(turn.stage), turn.parity);
      multiply<A, kAcross>(d, at.x(turn.stage), at.weights(k), k > 0);
      if (k > 0) {
        wait<1>();
        release(before);
      }
      before = turn.stage;
      turn.forward(1, at.stages);
    }
    pass(2 - group, 2 * kGroup);
    wait<0>();
    pin(d[0]);
    pin(d[1]);
    release(before);
    turn.forward(at.deep, at.stages);  // the other group's
#pragma unroll
    for (int half = 0; half < 2; ++half)
#pragma unroll
      for (int piece = 0; piece < 4; ++piece)
#pragma unroll
        for (int below = 0; below < 2; ++below)
          finish_row<A, kAcross, kEnd>(d[half] + piece * 16, bias, pre.at[half][piece][below],
                                       corner, ends, half, piece, below, lane);
  }
}

#endif

// Grid: clusters of two blocks, neighbours in N; `pairs` of them side by side, then down the rows.
template <class A, bool kAcross, End kEnd>
__global__ void __launch_bounds__(kThreads, 1)
    kernel(const __grid_constant__ CUtensorMap x_map, const __grid_constant__ CUtensorMap b_map,
           const Ends<A> ends, int deep, int pairs) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  using namespace device::sm90;
  extern __shared__ unsigned char shared[];
  const Address start = address_of(shared);
  const int cluster = blockIdx.x / 2, clusters = gridDim.x / 2;
  Place at;
  at.base = (start + 1023u) & ~1023u;
  at.deep = deep;
  at.stages = min(kTiles - deep, kMostStages);
  at.rank = cluster_rank();
  at.slice = cluster % pairs * 2 + static_cast<int>(at.rank);
  at.pairs = pairs;
  at.first = cluster / pairs;
  at.step = clusters / pairs;
  at.end = static_cast<int>((ends.rows + kTile - 1) / kTile);
  if (threadIdx.x == 0) {
    for (int stage = 0; stage < at.stages; ++stage) {
      barrier_init(at.full(stage), 1);
      barrier_init(at.empty(stage), 2 * 4);  // the warps of a group, of both blocks
    }
    barrier_init(at.weights_full(), 1);
    barriers_ready();
  }
  cluster_sync();
  after_previous();
  allow_next();
  float* const bias = reinterpret_cast<float*>(shared + (at.base - start) + kBiasAt);
  if (threadIdx.x < kTile) {
    const int n = at.slice * kTile + static_cast<int>(threadIdx.x);
    bias[threadIdx.x] = ends.bias != nullptr && n < ends.columns ? ends.bias[n] : 0.0f;
  }
  __syncthreads();
  if (threadIdx.x < kGroup) {
    give_registers<40>();
    constexpr bool kTwo = kEnd == End::kActivation || kEnd == End::kActivationGradient;
    if (threadIdx.x == 0) load<kAcross, kTwo>(at, x_map, b_map);
  } else {
    take_registers<232>();
    const int group = __shfl_sync(0xffffffffu, static_cast<int>(threadIdx.x) / kGroup, 0) - 1;
    compute<A, kAcross, kEnd>(at, bias, ends, group);
  }
  __syncwarp();
  cluster_leave();  // the other block arrives at barriers of this one
#endif
}

}  // namespace longstride::ops::cuda::resident
