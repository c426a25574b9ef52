// The gradients of keys and values on Hopper, for passes over consecutive queries.
//
//   dV[j] = sum_i P[i,j] dO[i]     dK[j] = scale sum_i dS[i,j] Q[i]
//   P = exp(scale Q K^T - L),  dS = P (dO V^T - D)
//
// A thread block holds 128 keys and values of one head, each of two warpgroups 64 of them; tiles of
// 64 queries (Q, dO, L, D) pass by, loaded kStages ahead by one warp; where registers allow, the
// scores of the next tile are under way while P and dS of one are made. All is transposed, keys are
// the rows: S^T = K Q^T, so that P^T and dS^T stay in registers as left factors of the products
// that end in dV and dK. Where widths are at most 64, K and V stay in registers too.
//
// Work: 4 d_qk + 4 d_v FLOPs and one exp2 a pair. No sums in memory. Per 64 x 64 pairs at d = 64,
// tensor cores take 512 cycles and exp2 256.
#pragma once

#include "ops/attention/attention_sm90_backward.h"
#include "ops/attention/attention_sm90_common.cuh"
#include "ops/attention/attention_sm90_key_tiles.cuh"

namespace longstride::ops::cuda::sm90 {

template <class A>
struct KeyGradientParams {
  CUtensorMap k[kMaxShapes], v[kMaxShapes], q, dout;
  KeyShape shapes[kMaxShapes];
  const DevicePart* parts;  // on the device, as is
  const HeadPass* passes;
  std::int32_t pass_count, length;
  Order order;
  Heads<A> dk, dv;
  RowNumbers rows;
  float scale;
};

template <int kQk, int kV>
struct KeyGradientShape {
  static constexpr bool kSmall = kQk == 64 && kV == 64;
  static constexpr bool kAhead = kSmall;  // registers for the scores of two tiles
  static constexpr int kGroups = 2, kThreads = 128 * (kGroups + 1);
  static constexpr int kRegisters = kQk == 64 ? 224 : 240, kLoaderRegisters = kQk == 64 ? 56 : 24;
  static_assert(registers_fit(kGroups, kRegisters, kLoaderRegisters));
  static constexpr int kKBytes = kKeyTile * kQk * 2, kVBytes = kKeyTile * kV * 2;
  static constexpr int kQBytes = kQueryTile * kQk * 2, kDoutBytes = kQueryTile * kV * 2;
  static constexpr int kTiles = 2, kStages = kSmall ? 6 : kQk == 64 ? 4 : 3;
  static constexpr int kBytes =
      1024 + kTiles * (kKBytes + kVBytes) + kStages * (kQBytes + kDoutBytes);
};

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)

// What the loading warp finds out about a tile of queries. Two bits for each warpgroup of 64 keys.
// some: a key is seen by a query, where both are set. all: all keys are seen by the last queries,
// all by the first.
struct QueryTile {
  const DevicePart* part;
  std::int32_t begin;
  std::uint8_t last;  // of the work
  std::uint8_t some, all;
  __device__ bool seen(int group) const { return (some >> (2 * group) & 3) == 3; }
  __device__ Cut cut(int group) const { return cut_of(all >> (2 * group)); }
};

// A tile of keys of one head.
struct KeyWork {
  KeySide side;
  std::int32_t head, batch;  // head < 0: there is no more work
  std::int32_t any;          // whether some query sees it
};

template <int kTiles, int kStages>
struct KeyGradientBarriers {
  std::uint64_t kv_full[kTiles], kv_free[kTiles], full[kStages], free[kStages];
  KeyWork work[kTiles];
  QueryTile tile[kStages];
  alignas(16) float lse[kStages][kQueryTile];
  alignas(16) float mean[kStages][kQueryTile];
};

// The loading warp; its first lane copies, all lanes know.
template <class A, int kQk, int kV>
struct KeyGradientLoader {
  using Shape = KeyGradientShape<kQk, kV>;
  const KeyGradientParams<A>& p;
  KeyGradientBarriers<Shape::kTiles, Shape::kStages>& barriers;
  Address k, v, q, dout;
  int lane;
  Ring<Shape::kTiles> keys;
  Ring<Shape::kStages> ring;

  __device__ void push(const KeyWork& work, const QueryTile& tile) {
    wait_for(address_of(&barriers.free[ring.stage]), ring.parity ^ 1);
    if (lane == 0) {
      const Address full = address_of(&barriers.full[ring.stage]);
      barriers.tile[ring.stage] = tile;
      arrive_expecting(full, Shape::kQBytes + Shape::kDoutBytes + 2 * kQueryTile * 4);
      for (int c = 0; c < kQk / 64; ++c)
        load_box(q + ring.stage * Shape::kQBytes + c * kQueryTile * kRowBytes, p.q, full, 64 * c,
                 tile.begin, 0, work.head, work.batch);
      for (int c = 0; c < kV / 64; ++c)
        load_box(dout + ring.stage * Shape::kDoutBytes + c * kQueryTile * kRowBytes, p.dout, full,
                 64 * c, tile.begin, 0, work.head, work.batch);
      const std::int64_t at =
          (std::int64_t{work.batch} * p.dk.heads + work.head) * p.rows.padded + tile.begin;
      load_bytes(address_of(barriers.lse[ring.stage]), p.rows.lse + at, kQueryTile * 4, full);
      load_bytes(address_of(barriers.mean[ring.stage]), p.rows.mean + at, kQueryTile * 4, full);
    }
    ring.advance();
  }
  __device__ void load_keys(const KeyWork& work) {
    const KeySide& side = work.side;
    const Address full = address_of(&barriers.kv_full[keys.stage]);
    const int shape = side.compact ? shape_of(*side.summary, p.shapes) : 0;
    const std::int32_t width = side.compact ? side.summary->summary_width.by : kPositionLimit;
    const std::int32_t block = side.compact ? side.summary->summary_width.quotient(side.begin) : 0;
    const std::int32_t column =
        side.begin - block * width + (side.compact ? side.summary->summary_first : 0);
    barriers.work[keys.stage] = work;
    arrive_expecting(full, keys_in_box(width, kKeyTile) * kRowBytes * (kQk / 64 + kV / 64));
    for (int c = 0; c < kQk / 64; ++c)
      load_box(k + keys.stage * Shape::kKBytes + c * kKeyTile * kRowBytes, p.k[shape], full, 64 * c,
               column, block, work.head, work.batch);
    for (int c = 0; c < kV / 64; ++c)
      load_box(v + keys.stage * Shape::kVBytes + c * kKeyTile * kRowBytes, p.v[shape], full, 64 * c,
               column, block, work.head, work.batch);
  }

  // Tiles of queries that see some of the keys.
  __device__ static KeyRange tiles_for(const KeySide& side, const DevicePart& part) {
    const KeyRange mine = side.keys_in(part);
    const std::int32_t begin = side.queries(part, mine.begin).begin / kQueryTile;
    const std::int32_t end = side.queries(part, mine.end - 1).end;
    return {begin, larger(begin, tiles_of(end, kQueryTile))};
  }
  // Lanes 2 g and 2 g + 1 look from the first and the last key of warpgroup g.
  __device__ void load_queries(const KeyWork& work, const DevicePart& part, std::int32_t& left) {
    const KeySide& side = work.side;
    const bool from_first = lane % 2 == 0;
    const std::int32_t first = side.begin + 64 * (lane / 2 % Shape::kGroups);
    const std::int32_t stop = smaller(first + 64, side.begin + side.keys);
    const KeyRange has = side.keys_in(part);
    const KeyRange mine = {larger(first, has.begin), smaller(stop, has.end)};
    const bool inside = lane < 2 * Shape::kGroups && !mine.empty();
    // Rows behind `stop` are nobody's: what is summed there is not stored.
    const bool whole = inside && mine.begin == first && mine.end == stop;
    const KeyRange seen =
        inside ? side.queries(part, from_first ? mine.begin : mine.end - 1) : KeyRange{};
    const KeyRange tiles = tiles_for(side, part);
    for (std::int32_t n = tiles.begin; n < tiles.end; ++n) {
      const std::int32_t begin = n * kQueryTile, behind = begin + kQueryTile;
      const bool some = inside && (from_first ? behind > seen.begin : begin < seen.end);
      const bool all = whole && (from_first ? behind <= seen.end : begin >= seen.begin);
      push(work, {&part, begin, static_cast<std::uint8_t>(--left == 0),
                  static_cast<std::uint8_t>(__ballot_sync(0xffffffffu, some)),
                  static_cast<std::uint8_t>(__ballot_sync(0xffffffffu, all))});
    }
  }
  __device__ void run() {
    Turns turns(p.order);
    while (turns.next()) {
      const HeadPass& pass = p.passes[turns.work.head % p.pass_count];
      KeyWork work{{}, pass.head, turns.work.head / p.pass_count, 0};
      if (!work.side.start(p.parts, pass, turns.work.tile, p.length)) continue;
      std::int32_t left = 0;
      work.side.each_part([&](const DevicePart& part) {
        const KeyRange tiles = tiles_for(work.side, part);
        left += tiles.end - tiles.begin;
      });
      work.any = left;
      wait_for(address_of(&barriers.kv_free[keys.stage]), keys.parity ^ 1);
      if (lane == 0) load_keys(work);
      keys.advance();
      work.side.each_part([&](const DevicePart& part) { load_queries(work, part, left); });
    }
    wait_for(address_of(&barriers.kv_free[keys.stage]), keys.parity ^ 1);
    if (lane == 0) {
      barriers.work[keys.stage].head = -1;
      arrive(address_of(&barriers.kv_full[keys.stage]));
    }
  }
};

// The queries that see a thread's two keys, of the part whose queries pass by; asked for where a
// tile does not see all.
struct QuerySight {
  const DevicePart* part = nullptr;
  std::int32_t begin[2], end[2];

  __device__ void mask(float (&s)[kQueryTile / 2], const QueryTile& tile, Cut cut,
                       const KeySide& side, std::int32_t row, int u) {
    if (part != tile.part) {
      part = tile.part;
      const KeyRange has = side.keys_in(*part);
      const std::int32_t t = row + 8 * (u & 1);
      const bool inside = t >= has.begin && t < has.end;
      const KeyRange mine = inside ? side.queries(*part, t) : KeyRange{};
      share_rows(mine.begin, begin);
      share_rows(mine.end, end);
    }
    std::int32_t from[2], to[2];
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      from[h] = begin[h] - tile.begin - 2 * u;
      to[h] = end[h] - tile.begin - 2 * u;
    }
    cut_off(s, cut, from, to);
  }
};

// One warpgroup.
template <class A, int kQk, int kV>
struct KeyGradient {
  using Shape = KeyGradientShape<kQk, kV>;
  using Stage = Ring<Shape::kStages>;
  using Scores = float[kQueryTile / 2];
  const KeyGradientParams<A>& p;
  KeyGradientBarriers<Shape::kTiles, Shape::kStages>& barriers;
  Address k, v, q, dout;
  int group;
  Scores s, s_ahead, dp;
  float dk[kQk / 2], dv[kV / 2];
  std::uint32_t weights[kQueryTile / 4], ds[kQueryTile / 4];
  std::uint64_t k_tile, v_tile;
  QuerySight sight;
  std::int32_t row;      // the first of this thread's two
  bool pending = false;  // dv and dk of the tile at `behind` are under way
  bool behind_last;      // that tile is the last of the work
  QueryTile tile;        // at `ring`
  Ring<Shape::kTiles> keys;
  Stage ring, behind;

  __device__ void finish_pending() {
    wait<0>();
    pin(dk), pin(dv);
    if (pending) release(barriers.free[behind.stage]);
    pending = false;
  }
  __device__ std::uint64_t q_tile(int stage) const {
    return tile_at(q + stage * Shape::kQBytes, kQueryTile * kRowBytes);
  }
  __device__ std::uint64_t dout_tile(int stage) const {
    return tile_at(dout + stage * Shape::kDoutBytes, kQueryTile * kRowBytes);
  }
  __device__ void start_scores(Scores& to, int stage) {
#pragma unroll
    for (int step = 0; step < kQk / 16; ++step)
      product<A, false>(to, step_along(k_tile, step, kKeyTile),
                        step_along(q_tile(stage), step, kQueryTile), step > 0);
  }
  __device__ void start_dp(int stage) {
#pragma unroll
    for (int step = 0; step < kV / 16; ++step)
      product<A, false>(dp, step_along(v_tile, step, kKeyTile),
                        step_along(dout_tile(stage), step, kQueryTile), step > 0);
  }
  // P of the tile at `at` from its scores, and dV under way.
  __device__ void add_values(Scores& scores, const QueryTile& of, const Stage& at) {
    const float scale_log2 = p.scale * 1.4426950408889634f;
    const int u = static_cast<int>(threadIdx.x) % 4;
    const Cut cut = of.cut(group);
    if (cut != Cut::none) sight.mask(scores, of, cut, barriers.work[keys.stage].side, row, u);
    const float* const lse = barriers.lse[at.stage];
#pragma unroll
    for (int j = 0; j < kQueryTile / 8; ++j) {
      const float2 l = *reinterpret_cast<const float2*>(lse + 8 * j + 2 * u);
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        float &a = scores[4 * j + 2 * h], &b = scores[4 * j + 2 * h + 1];
        a = exp2_of(fmaf(a, scale_log2, -l.x));
        b = exp2_of(fmaf(b, scale_log2, -l.y));
        weights[2 * j + h] = packed<A>(a, b);
      }
    }
    pin(weights);
    fence();
#pragma unroll
    for (int step = 0; step < kQueryTile / 16; ++step)
      product<A, true>(dv, weights + 4 * step, step_across(dout_tile(at.stage), step), true);
    commit();
  }
  // dS from P, and dK under way.
  __device__ void add_keys(const Scores& scores, const Stage& at) {
    const int u = static_cast<int>(threadIdx.x) % 4;
    const float* const mean = barriers.mean[at.stage];
#pragma unroll
    for (int j = 0; j < kQueryTile / 8; ++j) {
      const float2 m = *reinterpret_cast<const float2*>(mean + 8 * j + 2 * u);
#pragma unroll
      for (int h = 0; h < 2; ++h)
        ds[2 * j + h] = packed<A>(scores[4 * j + 2 * h] * (dp[4 * j + 2 * h] - m.x),
                                  scores[4 * j + 2 * h + 1] * (dp[4 * j + 2 * h + 1] - m.y));
    }
    pin(ds);
    fence();
#pragma unroll
    for (int step = 0; step < kQueryTile / 16; ++step)
      product<A, true>(dk, ds + 4 * step, step_across(q_tile(at.stage), step), true);
    commit();
    behind = at;
    pending = true;
  }
  // One tile after the other.
  __device__ void meet() {
    pin(s), pin(dp);
    fence();
    start_scores(s, ring.stage);
    commit();
    start_dp(ring.stage);
    commit();
    wait<1>();
    pin(s), pin(weights);
    if (pending) release(barriers.free[behind.stage]);
    add_values(s, tile, ring);
    wait<kQk == 128 ? 0 : 1>();  // wide sums leave no registers for both factors
    pin(dp), pin(ds);
    add_keys(s, ring);
  }
  // The tile at `ring`, of which `now` is under way, while that of the next, if it is seen, begins;
  // then that is the tile at `ring`.
  __device__ __forceinline__ bool meet_ahead(Scores& now, Scores& next) {
    const Stage at = ring;
    const QueryTile of = tile;
    bool more = false;
    ring.advance();
    behind_last = of.last != 0;
    if (of.last == 0) {
      wait_for(address_of(&barriers.full[ring.stage]), ring.parity);
      tile = barriers.tile[ring.stage];
      more = tile.seen(group);
    }
    pin(dp), pin(next);
    fence();
    start_dp(at.stage);
    commit();
    start_scores(next, more ? ring.stage : at.stage);  // for nothing at the end of a run
    commit();
    wait<3>();  // left: dK of the tile before, dP, the next scores
    pin(weights);
    add_values(now, of, at);
    wait<1>();  // left: dV
    pin(dp), pin(ds), pin(next);
    if (pending) release(barriers.free[behind.stage]);
    add_keys(now, at);
    return more;
  }
  __device__ void begin() {
    const int from = 64 * group * kRowBytes;
    k_tile = tile_at(k + keys.stage * Shape::kKBytes + from, kKeyTile * kRowBytes);
    v_tile = tile_at(v + keys.stage * Shape::kVBytes + from, kKeyTile * kRowBytes);
#pragma unroll
    for (int j = 0; j < kQk / 2; ++j) dk[j] = 0;
#pragma unroll
    for (int j = 0; j < kV / 2; ++j) dv[j] = 0;
  }
  __device__ void store() {
    const int u = static_cast<int>(threadIdx.x) % 4;
    const KeyWork& work = barriers.work[keys.stage];
    const KeySide& side = work.side;
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const std::int32_t t = row + 8 * h;
      const bool in_tile = t < side.begin + side.keys;
      const std::int32_t j = in_tile ? side.position(t) : 0;
      const bool mine = in_tile && !side.elsewhere(j);
      store_row<A, kQk>(row_of(p.dk, work.batch, j, work.head), static_cast<int>(p.dk.width), mine,
                        h, u, p.scale, dk);
      store_row<A, kV>(row_of(p.dv, work.batch, j, work.head), static_cast<int>(p.dv.width), mine,
                       h, u, 1, dv);
    }
  }
  __device__ void run() {
    const int thread = static_cast<int>(threadIdx.x);
    for (;; keys.advance()) {
      wait_for(address_of(&barriers.kv_full[keys.stage]), keys.parity);
      const KeyWork& work = barriers.work[keys.stage];
      if (work.head < 0) return;
      row = work.side.begin + 64 * group + thread % 128 / 32 * 16 + thread % 32 / 4;
      begin();
      sight.part = nullptr;
      for (bool last = work.any == 0; !last;) {
        wait_for(address_of(&barriers.full[ring.stage]), ring.parity);
        tile = barriers.tile[ring.stage];
        if (!tile.seen(group)) {
          finish_pending();
          release(barriers.free[ring.stage]);
          last = tile.last != 0;
          ring.advance();
        } else if constexpr (Shape::kAhead) {
          pin(s);
          fence();
          start_scores(s, ring.stage);
          commit();
          wait<0>();
          pin(s), pin(dk), pin(dv);
          if (pending) release(barriers.free[behind.stage]);
          pending = false;
          while (meet_ahead(s, s_ahead) && meet_ahead(s_ahead, s)) {
          }
          finish_pending();
          pin(s), pin(s_ahead);
          last = behind_last;
        } else {
          meet();
          last = tile.last != 0;
          ring.advance();
        }
      }
      finish_pending();
      store();
      release(barriers.kv_free[keys.stage]);
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
    give_registers<Shape::kLoaderRegisters>();
    if (threadIdx.x % 128 >= 32) return;
    KeyGradientLoader<A, kQk, kV> loader{
        p, barriers, k, v, q, dout, static_cast<int>(threadIdx.x) % 32};
    loader.run();
  } else {
    take_registers<Shape::kRegisters>();
    KeyGradient<A, kQk, kV> consumer{p, barriers, k, v, q, dout, group};
    consumer.run();
  }
#endif
}

}  // namespace longstride::ops::cuda::sm90
