// Backward of short line patterns on Hopper: all gradients in one walk along the sequence.
//
//   P = exp(scale Q K^T - L)   dS = P (dO V^T - D)   D = <dO, O>
//   dQ = scale dS K            dK = scale dS^T Q     dV = P^T dO
//
// A thread block takes a run of tiles of 64 positions. Tile i of queries meets the tiles i - 2,
// i - 1 and i of keys, and each of three warpgroups owns every third tile of keys: its K and V lie
// in shared memory, its dK and dV are summed in registers while three tiles of queries pass by,
// then written. All is transposed, keys are the rows (S^T = K Q^T), so P^T and dS^T are left
// factors from registers. dS goes to shared memory as well; from it, one tile later, the warpgroup
// whose keys are new makes dQ, complete. A fourth warpgroup loads ahead (one thread) and makes D
// (two warps). Heads of width 32 go in pairs, side by side in the 64 columns of a tile.
//
// Work: 6 d_qk + 4 d_v FLOPs and one exp2 a pair; no sums in memory, so the bits repeat. Least
// bytes: q, k, v, o, do read and dq, dk, dv written once; at B 4, H 8, N 12,288, D 64 that is 403
// MB or 0.134 ms at 3 TB/s, which binds: tensor cores take 0.025 ms there, all pairs of a tile
// counted.
#pragma once

#include "device/wgmma_n32_sm90.cuh"
#include "ops/attention/attention_sm90_short_backward_load.cuh"

namespace longstride::ops::cuda::sm90 {

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)

// One of the three warpgroups that multiply.
template <class A, class Shape>
struct ShortBackward {
  static constexpr int kHeads = Shape::kHeads, kQkWidth = Shape::kQk / kHeads,
                       kVWidth = Shape::kV / kHeads, kColumns = Shape::kColumns;
  const ShortBackwardParams<A>& p;
  ShortBackwardShared<Shape>& shared;
  const ShortWork& work;
  Address at;
  int group;
  float dk[kHeads][kQkWidth / 2], dv[kHeads][kVWidth / 2];
  std::int32_t key_tile;       // whose gradients these are
  std::int32_t row;            // the first of this thread's two keys
  std::int32_t query_ends[2];  // of both

  __device__ std::uint64_t tile(int from) const {
    return tile_at(at + static_cast<Address>(from), Shape::kTileBytes);
  }
  __device__ void start_keys(std::int32_t tile_of_keys) {
    key_tile = tile_of_keys;
    const int thread = static_cast<int>(threadIdx.x) % 128;
    row = key_tile * kWalkTile + thread / 32 * 16 + thread % 32 / 4;
    query_ends[0] = work.pattern.query_end(row);
    query_ends[1] = work.pattern.query_end(row + 8);
    const int n = key_tile - work.run.first_key;
    Turn<Shape::kKStages>(n).wait(shared.k_full);
    Turn<Shape::kVStages>(n).wait(shared.v_full);
#pragma unroll
    for (int h = 0; h < kHeads; ++h) {
#pragma unroll
      for (int j = 0; j < kQkWidth / 2; ++j) dk[h][j] = 0;
#pragma unroll
      for (int j = 0; j < kVWidth / 2; ++j) dv[h][j] = 0;
    }
  }

  // dS^T of 64 keys x kColumns queries becomes rows of queries, columns of keys.
  __device__ void store_ds(int to, int first, const std::uint32_t (&ds)[kColumns / 4]) const {
    const int thread = static_cast<int>(threadIdx.x) % 128, lane = thread % 32;
    const int query = first + lane / 16 * 8 + lane % 8, piece = thread / 32 * 2 + lane / 8 % 2;
    const Address address =
        at + static_cast<Address>(to + query * kRowBytes + (piece ^ (query & 7)) * 16);
#pragma unroll
    for (int j = 0; j < kColumns / 16; ++j)
      asm volatile("stmatrix.sync.aligned.m8n8.x4.trans.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(
                       address + j * 16 * kRowBytes),
                   "r"(ds[4 * j]), "r"(ds[4 * j + 1]), "r"(ds[4 * j + 2]), "r"(ds[4 * j + 3])
                   : "memory");
  }

  // kColumns queries of tile i from `first` of head h meet the keys.
  __device__ void meet(std::int32_t i, int h, int first, bool store) {
    const Turn<Shape::kQStages> q(i - work.run.first);
    const int n = key_tile - work.run.first_key;
    const std::uint64_t k_tile = tile(Shape::kK + n % Shape::kKStages * Shape::kQBytes),
                        v_tile = tile(Shape::kV0 + n % Shape::kVStages * Shape::kVBytes);
    const int q_at = Shape::kQ + q.stage * Shape::kQBytes + first * kRowBytes,
              do_at = Shape::kDo + q.stage * Shape::kVBytes + first * kRowBytes;
    float s[kColumns / 2], dp[kColumns / 2];
    std::uint32_t weights[kColumns / 4], ds[kColumns / 4];
    pin(s), pin(dp);
    fence();
#pragma unroll
    for (int step = 0; step < kQkWidth / 16; ++step)
      product<A, false>(s, along<kQkWidth>(k_tile, h, step), along<kQkWidth>(tile(q_at), h, step),
                        step > 0);
    commit();
#pragma unroll
    for (int step = 0; step < kVWidth / 16; ++step)
      product<A, false>(dp, along<kVWidth>(v_tile, h, step), along<kVWidth>(tile(do_at), h, step),
                        step > 0);
    commit();
    q.wait(shared.rows_full);
    wait<1>();
    pin(s);
    const int u = static_cast<int>(threadIdx.x) % 4;
    const float4* const rows = shared.rows[q.stage][h] + first / 2 + u;
    mask(s, i, first, u);
    const float scale_log2 = p.scale * 1.4426950408889634f;
#pragma unroll
    for (int j = 0; j < kColumns / 8; ++j) {
      const float2 lse = *reinterpret_cast<const float2*>(rows + 4 * j);
#pragma unroll
      for (int e = 0; e < 4; ++e)
        s[4 * j + e] = exp2_of(fmaf(s[4 * j + e], scale_log2, e % 2 == 0 ? -lse.x : -lse.y));
      weights[2 * j] = packed<A>(s[4 * j], s[4 * j + 1]);
      weights[2 * j + 1] = packed<A>(s[4 * j + 2], s[4 * j + 3]);
    }
    pin(weights), pin(dv[h]);
    fence();
#pragma unroll
    for (int step = 0; step < kColumns / 16; ++step)
      product<A, true>(dv[h], weights + 4 * step, across<kVWidth>(tile(do_at), h, step), true);
    commit();
    wait<1>();
    pin(dp);
#pragma unroll
    for (int j = 0; j < kColumns / 8; ++j) {
      const float2 mean = *(reinterpret_cast<const float2*>(rows + 4 * j) + 1);
      ds[2 * j] =
          packed<A>(s[4 * j] * (dp[4 * j] - mean.x), s[4 * j + 1] * (dp[4 * j + 1] - mean.y));
      ds[2 * j + 1] = packed<A>(s[4 * j + 2] * (dp[4 * j + 2] - mean.x),
                                s[4 * j + 3] * (dp[4 * j + 3] - mean.y));
    }
    pin(ds), pin(dk[h]);
    fence();
#pragma unroll
    for (int step = 0; step < kColumns / 16; ++step)
      product<A, true>(dk[h], ds + 4 * step, across<kQkWidth>(tile(q_at), h, step), true);
    commit();
    if (store) {
      const int j = i - work.run.first;
      store_ds(
          Shape::kDs + j % 2 * Shape::kDsBytes + (h * kLive + key_tile % kLive) * Shape::kTileBytes,
          first, ds);
    }
    wait<0>();
    pin(weights), pin(ds), pin(dv[h]), pin(dk[h]);
  }

  __device__ void mask(float (&s)[kColumns / 2], std::int32_t i, int first, int u) const {
    const Cut cut =
        static_cast<Cut>((work.pattern.cuts(i, key_tile) ? 1 : 0) + (i == key_tile ? 2 : 0));
    if (cut == Cut::none) return;
    const std::int32_t column = i * kWalkTile + first + 2 * u;
    const std::int32_t from[2] = {row - column, row + 8 - column};
    const std::int32_t to[2] = {query_ends[0] - column, query_ends[1] - column};
    cut_off(s, cut, from, to);
  }

  __device__ void store_keys() const {
    if (key_tile < work.run.first) return;
    const int u = static_cast<int>(threadIdx.x) % 4;
#pragma unroll
    for (int h = 0; h < kHeads; ++h)
#pragma unroll
      for (int up = 0; up < 2; ++up) {
        const std::int32_t j = row + 8 * up;
        store_row<A, kQkWidth>(row_of(p.dk, work.batch, j, work.head + h),
                               static_cast<int>(p.dk.width), j < p.walk.length, up, u, p.scale,
                               dk[h]);
        store_row<A, kVWidth>(row_of(p.dv, work.batch, j, work.head + h),
                              static_cast<int>(p.dv.width), j < p.walk.length, up, u, 1.0f, dv[h]);
      }
  }

  // dQ of tile i, whose dS all three warpgroups have put down. Half of its columns at a time where
  // registers are few.
  __device__ void make_queries(std::int32_t i) const {
    constexpr int kParts = kHeads == 2 || kVWidth == 128 ? 2 : 1, kWidth = Shape::kQk / kParts;
    const Turn<2> turn(i - work.run.first);
    turn.wait(shared.ds_full);
#pragma unroll
    for (int part = 0; part < kParts; ++part) {
      const int h = part % kHeads;
      float dq[kWidth / 2];
#pragma unroll
      for (int j = 0; j < kWidth / 2; ++j) dq[j] = 0;
#pragma unroll 1
      for (std::int32_t key = larger(work.run.first_key, i - (kLive - 1)); key <= i; ++key) {
        if (!work.pattern.sees(i, key)) continue;
        const int stage = (key - work.run.first_key) % Shape::kKStages;
        const std::uint64_t k_tile = tile(Shape::kK + stage * Shape::kQBytes),
                            ds_tile = tile(Shape::kDs + turn.stage * Shape::kDsBytes +
                                           (h * kLive + key % kLive) * Shape::kTileBytes);
        pin(dq);
        fence();
#pragma unroll
        for (int step = 0; step < kWalkTile / 16; ++step)
          product<A, true>(dq, step_along(ds_tile, step, kWalkTile),
                           across<kWidth>(k_tile, part, step), true);
        commit();
        wait<0>();
        pin(dq);
      }
      if (part == kParts - 1) {
        release(shared.ds_free[turn.stage]);
        const std::int32_t done = i - (kLive - 1);  // nobody sees these keys any more
        if (done >= work.run.first_key)
          release(shared.k_free[(done - work.run.first_key) % Shape::kKStages]);
      }
      const int thread = static_cast<int>(threadIdx.x) % 128, u = thread % 4;
      const int column = kHeads == 2 ? 0 : part * kWidth;
#pragma unroll
      for (int up = 0; up < 2; ++up) {
        const std::int32_t n = i * kWalkTile + thread / 32 * 16 + thread % 32 / 4 + 8 * up;
        store_row<A, kWidth>(row_of(p.dq, work.batch, n, work.head + h) + column,
                             static_cast<int>(p.dq.width) - column, n < p.walk.length, up, u,
                             p.scale, dq);
      }
    }
  }

  __device__ void run() {
    const ShortRun& run = work.run;
    key_tile = -1;
    for (std::int32_t i = run.first; i < larger(run.last, run.end + 1); ++i) {
      const std::int32_t back = (i + kLive - group) % kLive, key = i - back;
      if (i < run.last) {
        const Turn<Shape::kQStages> q(i - run.first);
        const bool active = key >= run.first_key && key < run.end;
        if (active && key != key_tile) start_keys(key);
        q.wait(shared.q_full);
        const Turn<2> ds(i - run.first);
        if (i < run.end) ds.wait_free(shared.ds_free);
        if (active && work.pattern.sees(i, key)) {
#pragma unroll
          for (int h = 0; h < kHeads; ++h)
#pragma unroll
            for (int first = 0; first < kWalkTile; first += kColumns)
              meet(i, h, first, i < run.end);
        }
        release(shared.q_free[q.stage]);
        if (i < run.end) {
          async_after_writes();
          release(shared.ds_full[ds.stage]);
        }
        if (active && i == smaller(key + kLive, run.last) - 1) {
          release(shared.v_free[(key - run.first_key) % Shape::kVStages]);
          store_keys();
        }
      }
      if (back == 0 && i > run.first && i <= run.end) make_queries(i - 1);
    }
  }
};

#endif

template <class A, class Shape>
__global__ void __launch_bounds__(Shape::kThreads, 1)
    short_backward_kernel(const __grid_constant__ ShortBackwardParams<A> p) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  extern __shared__ unsigned char tiles[];
  __shared__ ShortBackwardShared<Shape> shared;
  static_assert(sizeof(shared) + Shape::kBytes <= 227 * 1024);
  const Address at = (address_of(tiles) + 1023) / 1024 * 1024;
  if (threadIdx.x == 0) {
    constexpr int kWarps = 4 * Shape::kGroups;
    init(shared.k_full, 1), init(shared.v_full, 1), init(shared.q_full, 1), init(shared.o_full, 1);
    init(shared.k_free, 4), init(shared.v_free, 4), init(shared.q_free, kWarps);
    init(shared.o_free, Shape::kMeanThreads / 32), init(shared.rows_full, Shape::kMeanThreads / 32);
    init(shared.ds_full, kWarps), init(shared.ds_free, 4);
    barriers_ready();
  }
  __syncthreads();
  const ShortWork work = ShortWork::of(p.walk, Shape::kHeads);
  const int group = warpgroup();
  if (group == Shape::kGroups) {
    give_registers<Shape::kLoaderRegisters>();
    const ShortBackwardLoader<A, Shape> loader{p, shared, work, at};
    const int thread = static_cast<int>(threadIdx.x) % 128;
    if (thread == 0) loader.run();
    if (thread >= 128 - Shape::kMeanThreads) loader.make_rows(thread - (128 - Shape::kMeanThreads));
  } else {
    take_registers<Shape::kRegisters>();
    ShortBackward<A, Shape> consumer{p, shared, work, at, group};
    consumer.run();
  }
#endif
}

}  // namespace longstride::ops::cuda::sm90
