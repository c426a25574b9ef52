// Attention forward on Hopper, for passes over consecutive queries (all parts but columns).
//
//   O[i] = sum_j exp(scale S[i,j] - L[i]) V[j],  L[i] = log sum_j exp(scale S[i,j]),  S = Q K^T
//
// A thread block holds 64 kGroups queries of one head, a warpgroup 64 of them; keys pass by in
// tiles of 128 that one thread of a further warpgroup loads (TMA), kStages ahead. Each warpgroup
// has the scores of tile n under way while the product of tile n-1 with the values runs, and the
// softmax of one warpgroup runs under the products of the others. P stays in registers. Warpgroups
// pass over tiles that none of their queries sees; rows are compared with the interval of keys that
// they see only where a tile is not wholly inside.
//
// Work: 2 (d_qk + d_v) FLOPs and one exp2 a pair. Least bytes: Q, K, V, O once. Per tile of 64 x
// 128 pairs and d = 64, tensor cores take 512 cycles, exp2 512 as well: what binds is how well the
// two overlap (dense, fixed; about 970 cycles a tile in dense), or memory (local, row).
#pragma once

#include <cmath>

#include "ops/attention/attention_sm90_key_ring.cuh"
#include "tensor/tensor.h"

namespace longstride::ops::cuda::sm90 {

template <class A>
struct ForwardParams {
  CUtensorMap q;
  KeySource keys;
  Order order;
  Heads<A> out;
  float* lse;
  float scale;
};

// kShort: for queries that see few keys: small tiles of keys fit better, and more warpgroups work
// while others begin or end.
template <int kQk, int kV, bool kShort>
struct ForwardShape {
  static constexpr int kKeys = kShort ? 64 : 128;
  static constexpr int kGroups = kShort ? 4 : kQk == 64 && kV == 64 ? 3 : 2;
  static constexpr int kRows = 64 * kGroups;
  static constexpr bool kLazy = kQk == 64 && kV == 64;  // of the softmax
  static constexpr int kThreads = 128 * (kGroups + 1);
  static constexpr int kRegisters = kGroups == 4 ? 112 : kGroups == 3 ? 160 : 232;
  static constexpr int kLoaderRegisters = kGroups >= 3 ? 32 : 40;
  static_assert(registers_fit(kGroups, kRegisters, kLoaderRegisters));
  static constexpr int kQBytes = kRows * kQk * 2;
  static constexpr int kKBytes = kKeys * kQk * 2, kVBytes = kKeys * kV * 2;
  static constexpr int kStages = kShort ? 8 : kQk == 64 ? (kV == 64 ? 5 : 4) : 2;
  static constexpr int kBytes = 1024 + 2 * kQBytes + kStages * (kKBytes + kVBytes);
};

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)

// Online softmax of 64 x kKeys scores; thread registers as of wgmma: two rows, of which four
// threads have a part each. Weights are relative to `top`. kLazy: it follows the largest score only
// where that makes weights above 2^kSlack; else earlier sums and products stay as they are.
template <int kKeys, bool kLazy>
struct Softmax {
  static constexpr float kSlack = 8;  // weights up to 256 fit fp16
  float top[2] = {-INFINITY, -INFINITY};
  float sum[2] = {0, 0};  // of exp(score - top), of this thread's columns
  float shrink[2];        // what earlier sums and products are to be scaled by, if
  bool grew;              // rows of this warp have a new top

  __device__ void operator()(float (&s)[kKeys / 2], float scale_log2) {
    if constexpr (kLazy) {
      float largest[2];
#pragma unroll
      for (int h = 0; h < 2; ++h) largest[h] = largest_of(s, h);
      grew = __any_sync(0xffffffffu, (largest[0] - top[0]) * scale_log2 > kSlack ||
                                         (largest[1] - top[1]) * scale_log2 > kSlack);
      if (grew) {
#pragma unroll
        for (int h = 0; h < 2; ++h) {
          shrink[h] = exp2_of(top[h] * scale_log2 - base_of(largest[h], scale_log2));
          sum[h] *= shrink[h];
          top[h] = largest[h];
        }
      }
#pragma unroll
      for (int h = 0; h < 2; ++h) weigh(s, h, scale_log2, base_of(top[h], scale_log2), sum[h]);
    } else {
      grew = true;
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        const float largest = largest_of(s, h), base = base_of(largest, scale_log2);
        shrink[h] = exp2_of(top[h] * scale_log2 - base);
        top[h] = largest;
        weigh(s, h, scale_log2, base, sum[h] * shrink[h]);
      }
    }
  }
  __device__ static float base_of(float largest, float scale_log2) {
    return largest == -INFINITY ? 0 : largest * scale_log2;
  }
  __device__ float largest_of(const float (&s)[kKeys / 2], int h) const {
    float largest = top[h];
#pragma unroll
    for (int j = 0; j < kKeys / 8; ++j)
      largest = fmaxf(largest, fmaxf(s[4 * j + 2 * h], s[4 * j + 2 * h + 1]));
    largest = fmaxf(largest, __shfl_xor_sync(0xffffffffu, largest, 1));
    return fmaxf(largest, __shfl_xor_sync(0xffffffffu, largest, 2));
  }
  __device__ void weigh(float (&s)[kKeys / 2], int h, float scale_log2, float base, float even) {
    float odd = 0;
#pragma unroll
    for (int j = 0; j < kKeys / 8; ++j) {
      float& a = s[4 * j + 2 * h];
      float& b = s[4 * j + 2 * h + 1];
      a = exp2_of(fmaf(a, scale_log2, -base));
      b = exp2_of(fmaf(b, scale_log2, -base));
      even += a;
      odd += b;
    }
    sum[h] = even + odd;
  }
};

// Rows `row` and `row` + 8 of a thread: normalised, merged with an earlier pass where there was
// one.
template <class A, int kV, class Softmax>
__device__ void finish(const ForwardParams<A>& p, const Work& work, std::int32_t row, int u,
                       const Softmax& softmax, float (&o)[kV / 2]) {
#pragma unroll
  for (int h = 0; h < 2; ++h) {
    float sum = softmax.sum[h];
    sum += __shfl_xor_sync(0xffffffffu, sum, 1);
    sum += __shfl_xor_sync(0xffffffffu, sum, 2);
    const std::int32_t i = row + 8 * h;
    const bool inside = i < p.keys.length;
    A* const out = row_of(p.out, work.batch, inside ? i : 0, work.head);
    float* const kept = p.lse +
                        (std::int64_t{work.batch} * p.out.heads + work.head) * p.keys.length +
                        (inside ? i : 0);
    float lse = sum > 0 ? softmax.top[h] * p.scale + logf(sum) : -INFINITY;
    float weight = sum > 0 ? 1 / sum : 0, weight_before = 0;
    if (work.merges != 0) {
      const float before = *kept, larger_lse = fmaxf(before, lse);
      if (larger_lse != -INFINITY) {
        const float both = larger_lse + logf(expf(before - larger_lse) + expf(lse - larger_lse));
        weight_before = expf(before - both);
        weight *= expf(lse - both);
        lse = both;
      }
    }
    if (inside && u == 0) *kept = lse;
#pragma unroll
    for (int j = 0; j < kV / 8; j += 4) {
      std::uint32_t x[4];
#pragma unroll
      for (int k = 0; k < 4; ++k) {
        float2 y = {o[4 * (j + k) + 2 * h] * weight, o[4 * (j + k) + 2 * h + 1] * weight};
        const int column = 8 * (j + k) + 2 * u;
        if (weight_before != 0 && column < p.out.width) {
          const float2 before = unpacked<A>(*reinterpret_cast<const std::uint32_t*>(out + column));
          y = {y.x + weight_before * before.x, y.y + weight_before * before.y};
        }
        x[k] = packed<A>(y.x, y.y);
      }
      __syncwarp();  // all four have read before one writes
      transpose_quad(x, u);
      const int column = 8 * (j + u);
      if (inside && column < p.out.width)
        *reinterpret_cast<uint4*>(out + column) = make_uint4(x[0], x[1], x[2], x[3]);
    }
  }
}

// One warpgroup.
template <class A, int kQk, int kV, bool kShort>
struct ForwardConsumer {
  using Shape = ForwardShape<kQk, kV, kShort>;
  static constexpr int kKeys = Shape::kKeys;
  using Stage = Ring<Shape::kStages>;
  const ForwardParams<A>& p;
  WorkBarriers<2>& works;
  KeyBarriers<Shape::kStages>& barriers;
  Address q, k, v;
  int group;
  float s[kKeys / 2], o[kV / 2];
  std::uint32_t weights[kKeys / 4];  // P of the tile before
  Softmax<kKeys, Shape::kLazy> softmax;
  Sight<kKeys> sight;
  std::int32_t row;      // the first of this thread's two
  bool pending = false;  // weights are still to be multiplied with the values of `behind`
  Stage ring, behind;

  __device__ void wait_v(const Stage& at) {
    wait_for(address_of(&barriers.v_full[at.stage]), at.parity);
  }
  __device__ void start_scores(Address queries) {
    const std::uint64_t a = tile_at(queries + group * 64 * kRowBytes, Shape::kRows * kRowBytes);
    const std::uint64_t b = tile_at(k + ring.stage * Shape::kKBytes, kKeys * kRowBytes);
#pragma unroll
    for (int step = 0; step < kQk / 16; ++step)
      product<A, false>(s, step_along(a, step, Shape::kRows), step_along(b, step, kKeys), step > 0);
    commit();
  }
  __device__ void start_values() {
    const std::uint64_t b = tile_at(v + behind.stage * Shape::kVBytes, kKeys * kRowBytes);
#pragma unroll
    for (int step = 0; step < kKeys / 16; ++step)
      product<A, true>(o, weights + 4 * step, step_across(b, step), true);
    commit();
  }
  __device__ void flush() {
    if (!pending) return;
    wait_v(behind);
    pin(o), pin(weights);
    fence();
    start_values();
    wait<0>();
    pin(o);
    release(barriers.v_free[behind.stage]);
    pending = false;
  }
  __device__ void skip() {
    flush();
    release(barriers.k_free[ring.stage]);
    wait_v(ring);
    release(barriers.v_free[ring.stage]);
  }
  __device__ void soften(const TileInfo& tile) {
    release(barriers.k_free[ring.stage]);
    const Cut cut = tile.cut(group);
    if (cut != Cut::none)
      sight.mask(s, tile, cut, row, p.keys.length, static_cast<int>(threadIdx.x) % 4);
    softmax(s, p.scale * 1.4426950408889634f);
  }
  __device__ void take_weights() {
    if (!Shape::kLazy || softmax.grew) {
#pragma unroll
      for (int j = 0; j < kV / 2; ++j) o[j] *= softmax.shrink[j / 2 % 2];
    }
#pragma unroll
    for (int j = 0; j < kKeys / 4; ++j) weights[j] = packed<A>(s[2 * j], s[2 * j + 1]);
    behind = ring;
    pending = true;
  }
  __device__ void meet(const TileInfo& tile, Address queries) {
    if (pending) {
      wait_v(behind);
      pin(s), pin(o), pin(weights);
      fence();
      start_scores(queries);
      start_values();
      wait<1>();
      pin(s);
      soften(tile);
      made(softmax.sum[0] + softmax.sum[1]);
      wait<0>();
      pin(o), pin(weights);
      release(barriers.v_free[behind.stage]);
    } else {
      pin(s);
      fence();
      start_scores(queries);
      wait<0>();
      pin(s);
      soften(tile);
    }
    take_weights();
  }
  __device__ void run() {
    const int thread = static_cast<int>(threadIdx.x);
    for (Ring<2> queries;; queries.advance()) {
      wait_for(address_of(&works.full[queries.stage]), queries.parity);
      const Work work = works.work[queries.stage];
      if (work.head < 0) return;
      row = work.first + 64 * group + thread % 128 / 32 * 16 + thread % 32 / 4;
      softmax = {};
#pragma unroll
      for (int j = 0; j < kV / 2; ++j) o[j] = 0;
      sight.part = nullptr;
      for (bool last = false; !last; ring.advance()) {
        wait_for(address_of(&barriers.k_full[ring.stage]), ring.parity);
        const TileInfo tile = barriers.info[ring.stage];
        last = tile.last != 0;
        const Address mine = q + queries.stage * Shape::kQBytes;
        if (tile.seen(group))
          meet(tile, mine);
        else
          skip();
      }
      release(works.free[queries.stage]);
      flush();
      finish<A, kV>(p, work, row, thread % 4, softmax, o);
    }
  }
};

#endif

template <class A, int kQk, int kV, bool kShort>
__global__ void __launch_bounds__(ForwardShape<kQk, kV, kShort>::kThreads, 1)
    forward_kernel(const __grid_constant__ ForwardParams<A> p) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  using Shape = ForwardShape<kQk, kV, kShort>;
  extern __shared__ unsigned char shared[];
  __shared__ WorkBarriers<2> works;
  __shared__ KeyBarriers<Shape::kStages> barriers;
  const Address q = (address_of(shared) + 1023) / 1024 * 1024;
  const Address k = q + 2 * Shape::kQBytes, v = k + Shape::kStages * Shape::kKBytes;
  // A box may leave rows of a tile alone; masked weights of 0 must not meet a NaN there.
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
    load_all<Shape::kRows>(p.order, loader, works, Shape::kQBytes,
                           [&](const Work& work, int slot, Address full) {
                             for (int c = 0; c < kQk / 64; ++c)
                               load_box(q + slot * Shape::kQBytes + c * Shape::kRows * kRowBytes,
                                        p.q, full, 64 * c, work.first, 0, work.head, work.batch);
                           });
  } else {
    take_registers<Shape::kRegisters>();
    ForwardConsumer<A, kQk, kV, kShort> consumer{p, works, barriers, q, k, v, group};
    consumer.run();
  }
#endif
}

}  // namespace longstride::ops::cuda::sm90
