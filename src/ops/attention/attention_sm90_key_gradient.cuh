// The gradients of keys and values on Hopper, for passes over consecutive queries.
//
//   dV[j] = sum_i P[i,j] dO[i]     dK[j] = scale sum_i dS[i,j] Q[i]
//   P = exp(scale Q K^T - L),  dS = P (dO V^T - D)
//
// A thread block holds 128 keys and values of one head, each of two warpgroups 64 of them; tiles of
// 64 queries (Q, dO, L, D) pass by, loaded kStages ahead by one thread. All is transposed, keys are
// the rows: S^T = K Q^T, so that P^T and dS^T stay in registers as left factors of the products
// that end in dV and dK. Where widths are at most 64, K and V stay in registers too.
//
// Work: 4 d_qk + 4 d_v FLOPs and one exp2 a pair. No sums in memory. Per 64 x 64 pairs at d = 64,
// tensor cores take 512 cycles and exp2 256.
#pragma once

#include "ops/attention/attention_sm90_common.cuh"
#include "ops/attention/attention_sm90_key_tiles.cuh"

namespace longstride::ops::cuda::sm90 {

inline constexpr int kQueryTile = 64;

template <class A>
struct KeyGradientParams {
  CUtensorMap k[kMaxShapes], v[kMaxShapes], q, dout;
  KeyShape shapes[kMaxShapes];
  const DevicePart* parts;  // on the device, as is
  const HeadPass* passes;
  std::int32_t pass_count, length;
  Order order;
  Heads<A> dk, dv;
  const float *lse, *mean;  // [B, H, padded]: L log2(e), D
  std::int32_t padded;      // a multiple of kQueryTile
  float scale;
};

template <int kQk, int kV>
struct KeyGradientShape {
  static constexpr bool kSmall = kQk == 64 && kV == 64;
  static constexpr int kGroups = 2, kThreads = 128 * (kGroups + 1);
  static constexpr int kKBytes = kKeyTile * kQk * 2, kVBytes = kKeyTile * kV * 2;
  static constexpr int kQBytes = kQueryTile * kQk * 2, kDoutBytes = kQueryTile * kV * 2;
  static constexpr int kTiles = kSmall ? 1 : 2, kStages = kSmall ? 6 : kQk == 64 ? 4 : 3;
  static constexpr int kBytes =
      1024 + kTiles * (kKBytes + kVBytes) + kStages * (kQBytes + kDoutBytes);
};

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)

struct QueryTile {
  const DevicePart* part;
  std::int32_t begin;
  std::int32_t last;  // of the work
};

// A tile of keys of one head.
struct KeyWork {
  std::int32_t tile, pass, batch;  // pass < 0: there is no more work
  std::int32_t any;                // whether some query sees it
};

template <int kTiles, int kStages>
struct KeyGradientBarriers {
  std::uint64_t kv_full[kTiles], kv_free[kTiles], full[kStages], free[kStages];
  KeyWork work[kTiles];
  QueryTile tile[kStages];
  alignas(16) float lse[kStages][kQueryTile];
  alignas(16) float mean[kStages][kQueryTile];
};

template <class A, int kQk, int kV>
struct KeyGradientLoader {
  using Shape = KeyGradientShape<kQk, kV>;
  const KeyGradientParams<A>& p;
  KeyGradientBarriers<Shape::kTiles, Shape::kStages>& barriers;
  Address k, v, q, dout;
  Ring<Shape::kTiles> keys;
  Ring<Shape::kStages> ring;

  __device__ void push(const KeyWork& work, const QueryTile& tile) {
    const int head = p.passes[work.pass].head;
    const Address full = address_of(&barriers.full[ring.stage]);
    wait_for(address_of(&barriers.free[ring.stage]), ring.parity ^ 1);
    barriers.tile[ring.stage] = tile;
    arrive_expecting(full, Shape::kQBytes + Shape::kDoutBytes + 2 * kQueryTile * 4);
    for (int c = 0; c < kQk / 64; ++c)
      load_box(q + ring.stage * Shape::kQBytes + c * kQueryTile * kRowBytes, p.q, full, 64 * c,
               tile.begin, 0, head, work.batch);
    for (int c = 0; c < kV / 64; ++c)
      load_box(dout + ring.stage * Shape::kDoutBytes + c * kQueryTile * kRowBytes, p.dout, full,
               64 * c, tile.begin, 0, head, work.batch);
    const std::int64_t at = (std::int64_t{work.batch} * p.dk.heads + head) * p.padded + tile.begin;
    load_bytes(address_of(barriers.lse[ring.stage]), p.lse + at, kQueryTile * 4, full);
    load_bytes(address_of(barriers.mean[ring.stage]), p.mean + at, kQueryTile * 4, full);
    ring.advance();
  }
  __device__ void load_keys(const KeyWork& work, const KeySide& side) {
    const Address full = address_of(&barriers.kv_full[keys.stage]);
    const int head = p.passes[work.pass].head;
    const int shape = side.compact ? shape_of(*side.summary, p.shapes) : 0;
    const std::int32_t width = side.compact ? side.summary->summary_width.by : kPositionLimit;
    const std::int32_t block = side.compact ? side.summary->summary_width.quotient(side.begin) : 0;
    const std::int32_t column =
        side.begin - block * width + (side.compact ? side.summary->summary_first : 0);
    arrive_expecting(full, keys_in_box(width, kKeyTile) * kRowBytes * (kQk / 64 + kV / 64));
    for (int c = 0; c < kQk / 64; ++c)
      load_box(k + keys.stage * Shape::kKBytes + c * kKeyTile * kRowBytes, p.k[shape], full, 64 * c,
               column, block, head, work.batch);
    for (int c = 0; c < kV / 64; ++c)
      load_box(v + keys.stage * Shape::kVBytes + c * kKeyTile * kRowBytes, p.v[shape], full, 64 * c,
               column, block, head, work.batch);
  }
  __device__ void load(KeyWork work, const KeySide& side) {
    wait_for(address_of(&barriers.kv_free[keys.stage]), keys.parity ^ 1);
    std::int32_t tiles = 0;
    const auto range = [&](const DevicePart& part) {
      const KeyRange mine = side.keys_in(part);
      const std::int32_t begin = side.queries(part, mine.begin).begin;
      const std::int32_t end = side.queries(part, mine.end - 1).end;
      return KeyRange{begin / kQueryTile, larger(begin / kQueryTile, tiles_of(end, kQueryTile))};
    };
    side.each_part([&](const DevicePart& part) {
      const KeyRange mine = range(part);
      tiles += mine.end - mine.begin;
    });
    work.any = tiles > 0;
    barriers.work[keys.stage] = work;
    load_keys(work, side);
    keys.advance();
    side.each_part([&](const DevicePart& part) {
      const KeyRange mine = range(part);
      for (std::int32_t n = mine.begin; n < mine.end; ++n)
        push(work, {&part, n * kQueryTile, --tiles == 0});
    });
  }
  __device__ void run() {
    const auto block = static_cast<std::int32_t>(blockIdx.x);
    const auto blocks = static_cast<std::int32_t>(gridDim.x);
    for (std::int64_t round = 0; round * blocks < p.order.size(); ++round) {
      const std::int64_t index = p.order.index(round, block, blocks);
      if (index >= p.order.size()) continue;
      const Order::Work turn = p.order.at(index);
      const KeyWork work = {turn.tile, turn.head % p.pass_count, turn.head / p.pass_count, 0};
      KeySide side;
      if (side.start(p.parts, p.passes[work.pass], work.tile, p.length)) load(work, side);
    }
    wait_for(address_of(&barriers.kv_free[keys.stage]), keys.parity ^ 1);
    barriers.work[keys.stage] = {0, -1, 0, 0};
    arrive(address_of(&barriers.kv_full[keys.stage]));
  }
};

// What a warpgroup of 64 keys knows of the part whose queries pass by.
struct QuerySight {
  std::int32_t begin, end;          // queries that see some of its keys
  std::int32_t all_begin, all_end;  // queries that see all of them
  std::int32_t row_begin[2], row_end[2];

  __device__ void look(const KeySide& side, const DevicePart& part, std::int32_t first,
                       std::int32_t row) {
    const KeyRange has = side.keys_in(part);
    const std::int32_t stop = smaller(first + 64, side.begin + side.keys);
    const KeyRange mine = {larger(first, has.begin), smaller(stop, has.end)};
    begin = end = all_begin = all_end = 0;
    if (mine.empty()) return;
    const KeyRange of_first = side.queries(part, mine.begin);
    const KeyRange of_last = side.queries(part, mine.end - 1);
    begin = of_first.begin, end = of_last.end;
    // Rows behind `stop` are nobody's: what is summed there is not stored.
    if (mine.begin == first && mine.end == stop) all_begin = of_last.begin, all_end = of_first.end;
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const std::int32_t t = row + 8 * h;
      const bool inside = t >= mine.begin && t < mine.end;
      const KeyRange seen = inside ? side.queries(part, t) : KeyRange{};
      row_begin[h] = seen.begin, row_end[h] = seen.end;
    }
  }
  __device__ bool sees(std::int32_t query) const {
    return query < end && query + kQueryTile > begin;
  }
  __device__ bool sees_all(std::int32_t query) const {
    return query >= all_begin && query + kQueryTile <= all_end;
  }
  __device__ void mask(float (&s)[kQueryTile / 2], std::int32_t query, int u) const {
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const std::int32_t from = row_begin[h] - query - 2 * u, to = row_end[h] - query - 2 * u;
#pragma unroll
      for (int j = 0; j < kQueryTile / 8; ++j)
#pragma unroll
        for (int e = 0; e < 2; ++e)
          if (8 * j + e < from || 8 * j + e >= to) s[4 * j + 2 * h + e] = -INFINITY;
    }
  }
};

// One warpgroup.
template <class A, int kQk, int kV>
struct KeyGradient {
  using Shape = KeyGradientShape<kQk, kV>;
  using Stage = Ring<Shape::kStages>;
  const KeyGradientParams<A>& p;
  KeyGradientBarriers<Shape::kTiles, Shape::kStages>& barriers;
  Address k, v, q, dout;
  int group;
  float s[kQueryTile / 2], dp[kQueryTile / 2], dk[kQk / 2], dv[kV / 2];
  std::uint32_t weights[kQueryTile / 4], ds[kQueryTile / 4];
  std::uint32_t k_rows[Shape::kSmall ? kQk / 4 : 1], v_rows[Shape::kSmall ? kV / 4 : 1];
  std::uint64_t k_tile, v_tile;
  QuerySight sight;
  bool pending = false;  // dv and dk of the tile at `behind` are under way
  Stage ring, behind;

  __device__ void finish_pending() {
    wait<0>();
    pin(dk), pin(dv);
    if (pending) release(barriers.free[behind.stage]);
    pending = false;
  }
  __device__ void start_scores(std::uint64_t q_tile, std::uint64_t dout_tile) {
    pin(s), pin(dp);
    if constexpr (Shape::kSmall) pin(k_rows), pin(v_rows);
    fence();
#pragma unroll
    for (int step = 0; step < kQk / 16; ++step) {
      const std::uint64_t b = step_along(q_tile, step, kQueryTile);
      if constexpr (Shape::kSmall)
        product<A, false>(s, k_rows + 4 * step, b, step > 0);
      else
        product<A, false>(s, step_along(k_tile, step, kKeyTile), b, step > 0);
    }
    commit();
#pragma unroll
    for (int step = 0; step < kV / 16; ++step) {
      const std::uint64_t b = step_along(dout_tile, step, kQueryTile);
      if constexpr (Shape::kSmall)
        product<A, false>(dp, v_rows + 4 * step, b, step > 0);
      else
        product<A, false>(dp, step_along(v_tile, step, kKeyTile), b, step > 0);
    }
    commit();
  }
  __device__ void meet(std::int32_t query) {
    const float scale_log2 = p.scale * 1.4426950408889634f;
    const int u = static_cast<int>(threadIdx.x) % 4;
    const std::uint64_t q_tile = tile_at(q + ring.stage * Shape::kQBytes, kQueryTile * kRowBytes);
    const std::uint64_t dout_tile =
        tile_at(dout + ring.stage * Shape::kDoutBytes, kQueryTile * kRowBytes);
    const float *const lse = barriers.lse[ring.stage], *const mean = barriers.mean[ring.stage];
    start_scores(q_tile, dout_tile);
    wait<1>();
    pin(s), pin(weights);
    if (pending) release(barriers.free[behind.stage]);
    if (!sight.sees_all(query)) sight.mask(s, query, u);
#pragma unroll
    for (int j = 0; j < kQueryTile / 8; ++j) {
      const float2 l = *reinterpret_cast<const float2*>(lse + 8 * j + 2 * u);
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        float &a = s[4 * j + 2 * h], &b = s[4 * j + 2 * h + 1];
        a = exp2_of(fmaf(a, scale_log2, -l.x));
        b = exp2_of(fmaf(b, scale_log2, -l.y));
        weights[2 * j + h] = packed<A>(a, b);
      }
    }
    pin(weights);
    fence();
#pragma unroll
    for (int step = 0; step < kQueryTile / 16; ++step)
      product<A, true>(dv, weights + 4 * step, step_across(dout_tile, step), true);
    commit();
    wait<kQk == 128 ? 0 : 1>();  // wide sums leave no registers for both factors
    pin(dp), pin(ds);
#pragma unroll
    for (int j = 0; j < kQueryTile / 8; ++j) {
      const float2 m = *reinterpret_cast<const float2*>(mean + 8 * j + 2 * u);
#pragma unroll
      for (int h = 0; h < 2; ++h)
        ds[2 * j + h] = packed<A>(s[4 * j + 2 * h] * (dp[4 * j + 2 * h] - m.x),
                                  s[4 * j + 2 * h + 1] * (dp[4 * j + 2 * h + 1] - m.y));
    }
    pin(ds);
    fence();
#pragma unroll
    for (int step = 0; step < kQueryTile / 16; ++step)
      product<A, true>(dk, ds + 4 * step, step_across(q_tile, step), true);
    commit();
    behind = ring;
    pending = true;
  }
  __device__ void begin(int slot) {
    const int thread = static_cast<int>(threadIdx.x);
    const Address k_at = k + slot * Shape::kKBytes, v_at = v + slot * Shape::kVBytes;
    if constexpr (Shape::kSmall) {
      const int row = 64 * group + thread % 128 / 32 * 16;
#pragma unroll
      for (int step = 0; step < kQk / 16; ++step)
        load_a(k_rows + 4 * step, k_at, row, step, kKeyTile, thread % 32);
#pragma unroll
      for (int step = 0; step < kV / 16; ++step)
        load_a(v_rows + 4 * step, v_at, row, step, kKeyTile, thread % 32);
      __syncwarp();
      release(barriers.kv_free[slot]);
    } else {
      k_tile = tile_at(k_at + 64 * group * kRowBytes, kKeyTile * kRowBytes);
      v_tile = tile_at(v_at + 64 * group * kRowBytes, kKeyTile * kRowBytes);
    }
#pragma unroll
    for (int j = 0; j < kQk / 2; ++j) dk[j] = 0;
#pragma unroll
    for (int j = 0; j < kV / 2; ++j) dv[j] = 0;
  }
  __device__ void store(const KeySide& side, const KeyWork& work, std::int32_t row) {
    const int u = static_cast<int>(threadIdx.x) % 4, head = p.passes[work.pass].head;
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const std::int32_t t = row + 8 * h;
      const bool in_tile = t < side.begin + side.keys;
      const std::int32_t j = in_tile ? side.position(t) : 0;
      const bool mine = in_tile && !side.elsewhere(j);
      store_row<A, kQk>(row_of(p.dk, work.batch, j, head), static_cast<int>(p.dk.width), mine, h, u,
                        p.scale, dk);
      store_row<A, kV>(row_of(p.dv, work.batch, j, head), static_cast<int>(p.dv.width), mine, h, u,
                       1, dv);
    }
  }
  __device__ void run() {
    const int thread = static_cast<int>(threadIdx.x);
    for (Ring<Shape::kTiles> keys;; keys.advance()) {
      wait_for(address_of(&barriers.kv_full[keys.stage]), keys.parity);
      const KeyWork work = barriers.work[keys.stage];
      if (work.pass < 0) return;
      KeySide side;
      side.start(p.parts, p.passes[work.pass], work.tile, p.length);
      const std::int32_t first = side.begin + 64 * group;
      const std::int32_t row = first + thread % 128 / 32 * 16 + thread % 32 / 4;
      begin(keys.stage);
      const DevicePart* part = nullptr;
      for (bool last = work.any == 0; !last; ring.advance()) {
        wait_for(address_of(&barriers.full[ring.stage]), ring.parity);
        const QueryTile tile = barriers.tile[ring.stage];
        last = tile.last != 0;
        if (tile.part != part) sight.look(side, *(part = tile.part), first, row);
        if (sight.sees(tile.begin)) {
          meet(tile.begin);
        } else {
          finish_pending();
          release(barriers.free[ring.stage]);
        }
      }
      finish_pending();
      if constexpr (!Shape::kSmall) release(barriers.kv_free[keys.stage]);
      store(side, work, row);
    }
  }
};

#endif

template <class A, int kQk, int kV>
__global__ void __launch_bounds__(KeyGradientShape<kQk, kV>::kThreads, 1)
    key_gradient_kernel(const __grid_constant__ KeyGradientParams<A> p) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  using Shape = KeyGradientShape<kQk, kV>;
  extern __shared__ unsigned char shared[];
  __shared__ KeyGradientBarriers<Shape::kTiles, Shape::kStages> barriers;
  const Address k = (address_of(shared) + 1023) / 1024 * 1024;
  const Address v = k + Shape::kTiles * Shape::kKBytes, q = v + Shape::kTiles * Shape::kVBytes;
  const Address dout = q + Shape::kStages * Shape::kQBytes;
  if (threadIdx.x == 0) {
    for (int n = 0; n < Shape::kTiles; ++n) {
      barrier_init(address_of(&barriers.kv_full[n]), 1);
      barrier_init(address_of(&barriers.kv_free[n]), 4 * Shape::kGroups);
    }
    for (int n = 0; n < Shape::kStages; ++n) {
      barrier_init(address_of(&barriers.full[n]), 1);
      barrier_init(address_of(&barriers.free[n]), 4 * Shape::kGroups);
    }
    barriers_ready();
  }
  __syncthreads();
  const int group = warpgroup();
  if (group == Shape::kGroups) {
    give_registers<24>();
    if (threadIdx.x % 128 != 0) return;
    KeyGradientLoader<A, kQk, kV> loader{p, barriers, k, v, q, dout};
    loader.run();
  } else {
    take_registers<240>();
    KeyGradient<A, kQk, kV> consumer{p, barriers, k, v, q, dout, group};
    consumer.run();
  }
#endif
}

}  // namespace longstride::ops::cuda::sm90
