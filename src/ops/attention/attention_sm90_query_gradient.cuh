// The gradient of the queries on Hopper, for passes over consecutive queries.
//
//   dQ[i] = scale sum_j dS[i,j] K[j],  dS = P (dO V^T - D),  P = exp(scale Q K^T - L)
//
// A thread block holds 128 queries of one head and their dO, each of two warpgroups 64 of them;
// keys pass by as in the forward kernel. P and dS stay in registers. While one warpgroup makes P
// and dS of its scores, the products of the other run: dQ of tile n and both scores of tile n + 1.
//
// On the way L and D = <dO, O> of every row are put down as both gradients want them.
//
// Work: 4 d_qk + 2 d_v FLOPs and one exp2 a pair (the other half of the backward pass is the
// gradient of keys and values). No sums in memory, so the bits repeat. Per 64 x 128 pairs at d =
// 64, tensor cores take 768 cycles and exp2 512.
#pragma once

#include "ops/attention/attention_sm90_backward.h"
#include "ops/attention/attention_sm90_key_ring.cuh"

namespace longstride::ops::cuda::sm90 {

template <class A>
struct QueryGradientParams {
  CUtensorMap q, dout, out;
  KeySource keys;
  Order order;
  const float* lse;  // [B, H, N]
  Heads<A> dq;
  RowNumbers rows;  // written: D and L as both gradients want them
  float scale;
};

// kShort: for queries that see few keys (as in ForwardShape).
template <int kQk, int kV, bool kShort>
struct QueryGradientShape {
  static constexpr bool kSmall = kQk == 64 && kV == 64;
  static constexpr int kGroups = kShort ? 3 : 2, kRows = 64 * kGroups;
  static constexpr int kThreads = 128 * (kGroups + 1);
  static constexpr int kRegisters = kShort ? 160 : 232, kLoaderRegisters = kShort ? 32 : 40;
  static_assert(registers_fit(kGroups, kRegisters, kLoaderRegisters));
  static constexpr int kKeys = kSmall && !kShort ? 128 : 64;  // of a tile
  static constexpr int kQBytes = kRows * kQk * 2, kDoutBytes = kRows * kV * 2;
  static constexpr int kKBytes = kKeys * kQk * 2, kVBytes = kKeys * kV * 2;
  static constexpr int kQueries = kSmall ? 2 : 1;  // tiles of queries
  static constexpr int kStages = kShort ? 5 : 4;   // of keys
  static constexpr int kBytes =
      1024 + kQueries * (kQBytes + 2 * kDoutBytes) + kStages * (kKBytes + kVBytes);
};

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)

// L log2(e), +inf for a row without keys: P = 0 there.
__device__ inline float lse_log2(float lse) {
  return lse == -INFINITY ? INFINITY : lse * 1.4426950408889634f;
}

// Of 8 numbers each in shared memory.
template <class A>
__device__ float dot_of(Address a, Address b) {
  std::uint32_t x[4], y[4];
  asm volatile("ld.shared.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(x[0]), "=r"(x[1]), "=r"(x[2]), "=r"(x[3])
               : "r"(a));
  asm volatile("ld.shared.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(y[0]), "=r"(y[1]), "=r"(y[2]), "=r"(y[3])
               : "r"(b));
  float sum = 0;
#pragma unroll
  for (int n = 0; n < 4; ++n) {
    const float2 p = unpacked<A>(x[n]), q = unpacked<A>(y[n]);
    sum += p.x * q.x + p.y * q.y;
  }
  return sum;
}

// One warpgroup.
template <class A, int kQk, int kV, bool kShort>
struct QueryGradient {
  using Shape = QueryGradientShape<kQk, kV, kShort>;
  static constexpr int kKeys = Shape::kKeys;
  using Stage = Ring<Shape::kStages>;
  const QueryGradientParams<A>& p;
  WorkBarriers<Shape::kQueries>& works;
  KeyBarriers<Shape::kStages>& barriers;
  Address q, dout, out, k, v;
  int group;
  float s[kKeys / 2], dp[kKeys / 2], dq[kQk / 2];
  std::uint32_t ds[kKeys / 4];
  float lse[2], mean[2];  // of this thread's two rows
  Sight<kKeys> sight;
  std::int32_t row;      // the first of this thread's two
  bool pending = false;  // dq of the tile at `behind` is under way
  Stage ring, behind;

  __device__ void finish_pending() {
    wait<0>();
    pin(dq);
    if (pending) release(barriers.k_free[behind.stage]);
    pending = false;
  }
  __device__ void skip() {
    finish_pending();
    release(barriers.k_free[ring.stage]);
    wait_for(address_of(&barriers.v_full[ring.stage]), ring.parity);
    release(barriers.v_free[ring.stage]);
  }
  __device__ void start_scores(std::uint64_t q_tile, std::uint64_t dout_tile,
                               std::uint64_t k_tile) {
    const std::uint64_t v_tile = tile_at(v + ring.stage * Shape::kVBytes, kKeys * kRowBytes);
    pin(s), pin(dp);
    fence();
#pragma unroll
    for (int step = 0; step < kQk / 16; ++step)
      product<A, false>(s, step_along(q_tile, step, Shape::kRows), step_along(k_tile, step, kKeys),
                        step > 0);
    commit();
#pragma unroll
    for (int step = 0; step < kV / 16; ++step)
      product<A, false>(dp, step_along(dout_tile, step, Shape::kRows),
                        step_along(v_tile, step, kKeys), step > 0);
    commit();
  }
  __device__ void meet(const TileInfo& tile, std::uint64_t q_tile, std::uint64_t dout_tile) {
    const std::uint64_t k_tile = tile_at(k + ring.stage * Shape::kKBytes, kKeys * kRowBytes);
    const float scale_log2 = p.scale * 1.4426950408889634f;
    wait_for(address_of(&barriers.v_full[ring.stage]), ring.parity);
    start_scores(q_tile, dout_tile, k_tile);
    wait<1>();
    pin(s);
    if (pending) release(barriers.k_free[behind.stage]);
    const Cut cut = tile.cut(group);
    if (cut != Cut::none)
      sight.mask(s, tile, cut, row, p.keys.length, static_cast<int>(threadIdx.x) % 4);
    const float base[2] = {lse_log2(lse[0]), lse_log2(lse[1])};
#pragma unroll
    for (int j = 0; j < kKeys / 2; ++j)
      s[j] = exp2_of(fmaf(s[j], scale_log2, j / 2 % 2 == 0 ? -base[0] : -base[1]));
    made(s[kKeys / 2 - 1] + s[kKeys / 2 - 2]);
    wait<0>();
    pin(dp), pin(ds), pin(dq);
    release(barriers.v_free[ring.stage]);
#pragma unroll
    for (int j = 0; j < kKeys / 4; ++j)
      ds[j] = packed<A>(s[2 * j] * (dp[2 * j] - mean[j % 2]),
                        s[2 * j + 1] * (dp[2 * j + 1] - mean[j % 2]));
    pin(ds);
    fence();
#pragma unroll
    for (int step = 0; step < kKeys / 16; ++step)
      product<A, true>(dq, ds + 4 * step, step_across(k_tile, step), true);
    commit();
    behind = ring;
    pending = true;
  }
  // Of this thread's two rows; L is on its way while the first products run.
  __device__ void begin(const Work& work, int slot) {
    const int u = static_cast<int>(threadIdx.x) % 4;
    const std::int64_t head = std::int64_t{work.batch} * p.dq.heads + work.head;
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const std::int32_t i = row + 8 * h;
      lse[h] = i < p.keys.length ? p.lse[head * p.keys.length + i] : -INFINITY;
      // Four threads have a part of a row each; rows behind the end are zero.
      const int in_tile = i - work.first;
      float sum = 0;
#pragma unroll
      for (int n = 0; n < kV / 32; ++n) {
        const Address at = static_cast<Address>(slot * Shape::kDoutBytes +
                                                (n / 2 * Shape::kRows + in_tile) * kRowBytes +
                                                ((4 * (n % 2) + u) ^ (in_tile & 7)) * 16);
        sum += dot_of<A>(dout + at, out + at);
      }
      sum += __shfl_xor_sync(0xffffffffu, sum, 1);
      mean[h] = sum + __shfl_xor_sync(0xffffffffu, sum, 2);
    }
#pragma unroll
    for (int j = 0; j < kQk / 2; ++j) dq[j] = 0;
  }
  __device__ void put_rows_down(const Work& work) {
    if (threadIdx.x % 4 != 0) return;
    const std::int64_t head = std::int64_t{work.batch} * p.dq.heads + work.head;
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const std::int32_t i = row + 8 * h;
      if (i >= p.rows.padded) continue;
      p.rows.lse[head * p.rows.padded + i] = lse_log2(lse[h]);
      p.rows.mean[head * p.rows.padded + i] = mean[h];
    }
  }
  __device__ void run() {
    const int thread = static_cast<int>(threadIdx.x);
    for (Ring<Shape::kQueries> queries;; queries.advance()) {
      wait_for(address_of(&works.full[queries.stage]), queries.parity);
      const Work work = works.work[queries.stage];
      if (work.head < 0) return;
      row = work.first + 64 * group + thread % 128 / 32 * 16 + thread % 32 / 4;
      begin(work, queries.stage);
      const std::uint64_t q_tile = tile_at(
          q + queries.stage * Shape::kQBytes + group * 64 * kRowBytes, Shape::kRows * kRowBytes);
      const std::uint64_t dout_tile =
          tile_at(dout + queries.stage * Shape::kDoutBytes + group * 64 * kRowBytes,
                  Shape::kRows * kRowBytes);
      sight.part = nullptr;
      for (bool last = false; !last; ring.advance()) {
        wait_for(address_of(&barriers.k_full[ring.stage]), ring.parity);
        const TileInfo tile = barriers.info[ring.stage];
        last = tile.last != 0;
        if (tile.seen(group))
          meet(tile, q_tile, dout_tile);
        else
          skip();
      }
      finish_pending();
      release(works.free[queries.stage]);
      put_rows_down(work);
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        const std::int32_t i = row + 8 * h;
        store_row<A, kQk>(row_of(p.dq, work.batch, i, work.head), static_cast<int>(p.dq.width),
                          i < p.keys.length, h, thread % 4, p.scale, dq);
      }
    }
  }
};

#endif

template <class A, int kQk, int kV, bool kShort>
__global__ void __launch_bounds__(QueryGradientShape<kQk, kV, kShort>::kThreads, 1)
    query_gradient_kernel(const __grid_constant__ QueryGradientParams<A> p) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  using Shape = QueryGradientShape<kQk, kV, kShort>;
  extern __shared__ unsigned char shared[];
  __shared__ WorkBarriers<Shape::kQueries> works;
  __shared__ KeyBarriers<Shape::kStages> barriers;
  const Address q = (address_of(shared) + 1023) / 1024 * 1024;
  const Address dout = q + Shape::kQueries * Shape::kQBytes;
  const Address out = dout + Shape::kQueries * Shape::kDoutBytes;
  const Address k = out + Shape::kQueries * Shape::kDoutBytes;
  const Address v = k + Shape::kStages * Shape::kKBytes;
  // A box may leave rows of a tile alone; dS of 0 must not meet a NaN there.
  clear_shared(k, Shape::kStages * (Shape::kKBytes + Shape::kVBytes));
  if (threadIdx.x == 0) {
    works.init(4 * Shape::kGroups);
    barriers.init(4 * Shape::kGroups);
    barriers_ready();
  }
  async_after_writes();
  __syncthreads();
  const int group = warpgroup();
  if (group == Shape::kGroups) {
    give_registers<Shape::kLoaderRegisters>();
    if (threadIdx.x % 128 >= 32) return;
    KeyLoader<Shape::kKeys, Shape::kGroups, kQk, kV, Shape::kStages> loader{
        p.keys, barriers, k, v, static_cast<int>(threadIdx.x) % 32};
    load_all<Shape::kRows>(
        p.order, loader, works, Shape::kQBytes + 2 * Shape::kDoutBytes,
        [&](const Work& work, int slot, Address full) {
          for (int c = 0; c < kQk / 64; ++c)
            load_box(q + slot * Shape::kQBytes + c * Shape::kRows * kRowBytes, p.q, full, 64 * c,
                     work.first, 0, work.head, work.batch);
          for (int c = 0; c < kV / 64; ++c) {
            const Address to = slot * Shape::kDoutBytes + c * Shape::kRows * kRowBytes;
            load_box(dout + to, p.dout, full, 64 * c, work.first, 0, work.head, work.batch);
            load_box(out + to, p.out, full, 64 * c, work.first, 0, work.head, work.batch);
          }
        });
  } else {
    take_registers<Shape::kRegisters>();
    QueryGradient<A, kQk, kV, kShort> consumer{p, works, barriers, q, dout, out, k, v, group};
    consumer.run();
  }
#endif
}

}  // namespace longstride::ops::cuda::sm90
