// Forward of short line patterns on Hopper, in a walk along the sequence.
//
//   O = softmax(scale Q K^T) V,  L = log sum exp
//
// A thread block takes a run of tiles of 64 positions, three warpgroups every third tile of queries
// each; keys and values are loaded once and stay while the three tiles of queries that may see them
// pass. All scores of a query, of at most 192 keys, are in registers at once: no running maximum.
// Heads of width 32 go in pairs, side by side in the 64 columns of a tile.
//
// Work: 2 d_qk + 2 d_v FLOPs and one exp2 a pair. Least bytes: q, k, v read and o, L written once;
// at B 4, H 8, N 12,288, D 64 that is 203 MB or 0.068 ms at 3 TB/s, which binds.
#pragma once

#include "ops/attention/attention_sm90_short_walk.cuh"

namespace longstride::ops::cuda::sm90 {

template <class A>
struct ShortForwardParams {
  CUtensorMap q, k, v;  // boxes of 64 rows by 64 columns
  ShortWalk walk;
  Heads<A> out;  // of single heads
  float* lse;    // [B, H, N]
  float scale;
};

template <int kQk_, int kV_, int kHeads_>
struct ShortForwardShape {
  static constexpr int kQk = kQk_, kV = kV_, kHeads = kHeads_;
  static constexpr int kGroups = 3, kThreads = 128 * (kGroups + 1);
  static constexpr int kRegisters = 160, kLoaderRegisters = 32;
  static_assert(registers_fit(kGroups, kRegisters, kLoaderRegisters));
  static constexpr int kTileBytes = kWalkTile * 64 * 2;  // of 64 columns
  static constexpr int kQBytes = kTileBytes * kQk / 64, kVBytes = kTileBytes * kV / 64;
  static constexpr int kKeyBytes = kQBytes + kVBytes;
  static constexpr int kStages = kV == 128 ? 7 : 9, kQStages = 6;
  static constexpr int kQ = kStages * kKeyBytes, kBytes = 1024 + kQ + kQStages * kQBytes;
  static_assert(kBytes <= 226 * 1024);
};

template <class Shape>
struct ShortForwardBarriers {
  std::uint64_t full[Shape::kStages], free[Shape::kStages];  // K and V
  std::uint64_t q_full[Shape::kQStages], q_free[Shape::kQStages];
};

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)

// One thread.
template <class A, class Shape>
__device__ void load_forward(const ShortForwardParams<A>& p, ShortForwardBarriers<Shape>& barriers,
                             const ShortWork& work, Address at) {
  const std::int32_t head = work.head / Shape::kHeads;
  std::int32_t key = work.run.first_key;
  for (std::int32_t i = work.run.first; i < work.run.end; ++i) {
    const Turn<Shape::kQStages> q(i - work.run.first);
    q.wait_free(barriers.q_free);
    const Address q_full = address_of(&barriers.q_full[q.stage]);
    arrive_expecting(q_full, Shape::kQBytes);
    load_tile<Shape::kQk>(at + Shape::kQ + q.stage * Shape::kQBytes, p.q, q_full, i, head,
                          work.batch);
    for (; key <= i; ++key) {
      const Turn<Shape::kStages> turn(key - work.run.first_key);
      turn.wait_free(barriers.free);
      const Address full = address_of(&barriers.full[turn.stage]);
      const Address to = at + turn.stage * Shape::kKeyBytes;
      arrive_expecting(full, Shape::kKeyBytes);
      load_tile<Shape::kQk>(to, p.k, full, key, head, work.batch);
      load_tile<Shape::kV>(to + Shape::kQBytes, p.v, full, key, head, work.batch);
    }
  }
}

// One of the three warpgroups that multiply.
template <class A, class Shape>
struct ShortForward {
  static constexpr int kHeads = Shape::kHeads, kQkWidth = Shape::kQk / kHeads,
                       kVWidth = Shape::kV / kHeads;
  const ShortForwardParams<A>& p;
  ShortForwardBarriers<Shape>& barriers;
  const ShortWork& work;
  Address at;
  std::int32_t row;        // the first of this thread's two queries
  std::int32_t begins[2];  // of the keys that both see
  // Of the warp: its first query; the begins of the keys that its first and its last query see.
  std::int32_t warp_row, warp_begins[2];
  std::int32_t tile;  // of the queries

  // Tile of keys number `back` before that of the queries; its place in the ring. Where there is
  // none to be seen, that of the queries themselves stands in, with no weight.
  __device__ bool seen(int back) const {
    return tile - back >= work.run.first_key && work.pattern.sees(tile, tile - back);
  }
  __device__ Address keys(int back) const {
    const std::int32_t key = seen(back) ? tile - back : tile;
    return at + (key - work.run.first_key) % Shape::kStages * Shape::kKeyBytes;
  }

  // Of 16 keys, whether one of the warp's queries sees some, and whether all see all.
  __device__ bool some(std::int32_t begin) const {
    return begin < warp_row + 16 && begin + 16 > warp_begins[0];
  }
  __device__ bool all(std::int32_t begin) const {
    return begin + 16 <= warp_row + 1 && begin >= warp_begins[1];
  }
  __device__ void mask(float (&s)[kWalkTile / 2], int g, std::int32_t begin, int u) const {
    const std::int32_t column = begin + 2 * u;
    const std::int32_t from[2] = {begins[0] - column, begins[1] - column};
    const std::int32_t to[2] = {row + 1 - column, row + 9 - column};
#pragma unroll
    for (int j = 0; j < 8; ++j) {
      const int at_column = 8 * (j / 4) + j % 2, h = j / 2 % 2;
      if (at_column < from[h] || at_column >= to[h]) s[8 * g + j] = -INFINITY;
    }
  }

  // Scores become weights, not yet divided by their sum.
  __device__ void soften(float (&s)[kLive][kWalkTile / 2], std::uint32_t (&weights)[kLive][16],
                         float (&top)[2], float (&sum)[2]) const {
    constexpr int kSixteens = kWalkTile / 16;
    const float scale_log2 = p.scale * 1.4426950408889634f;
    const int u = static_cast<int>(threadIdx.x) % 4;
    top[0] = top[1] = -INFINITY;
#pragma unroll
    for (int back = 0; back < kLive; ++back)
#pragma unroll
      for (int g = 0; g < kSixteens; ++g) {
        const std::int32_t begin = (tile - back) * kWalkTile + 16 * g;
        if (!some(begin)) continue;
        if (!all(begin)) mask(s[back], g, begin, u);
#pragma unroll
        for (int j = 8 * g; j < 8 * g + 8; ++j) top[j / 2 % 2] = fmaxf(top[j / 2 % 2], s[back][j]);
      }
    float base[2];
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      top[h] = fmaxf(top[h], __shfl_xor_sync(0xffffffffu, top[h], 1));
      top[h] = fmaxf(top[h], __shfl_xor_sync(0xffffffffu, top[h], 2));
      base[h] = top[h] * scale_log2;  // a query sees itself
      sum[h] = 0;
    }
#pragma unroll
    for (int back = 0; back < kLive; ++back)
#pragma unroll
      for (int g = 0; g < kSixteens; ++g) {
        if (!some((tile - back) * kWalkTile + 16 * g)) {
#pragma unroll
          for (int j = 4 * g; j < 4 * g + 4; ++j) weights[back][j] = 0;
          continue;
        }
#pragma unroll
        for (int j = 4 * g; j < 4 * g + 4; ++j) {
          const float a = exp2_of(fmaf(s[back][2 * j], scale_log2, -base[j % 2]));
          const float b = exp2_of(fmaf(s[back][2 * j + 1], scale_log2, -base[j % 2]));
          sum[j % 2] += a + b;
          weights[back][j] = packed<A>(a, b);
        }
      }
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      sum[h] += __shfl_xor_sync(0xffffffffu, sum[h], 1);
      sum[h] += __shfl_xor_sync(0xffffffffu, sum[h], 2);
    }
  }

  __device__ void attend(int h, Address queries) const {
    float s[kLive][kWalkTile / 2];
    std::uint32_t weights[kLive][16];
    Address key_tiles[kLive];
#pragma unroll
    for (int back = 0; back < kLive; ++back) {
      key_tiles[back] = keys(back);
      pin(s[back]);
    }
    pin(key_tiles);
    fence();
#pragma unroll
    for (int back = 0; back < kLive; ++back) {
      const std::uint64_t q_tile = tile_at(queries, Shape::kTileBytes),
                          k_tile = tile_at(key_tiles[back], Shape::kTileBytes);
#pragma unroll
      for (int step = 0; step < kQkWidth / 16; ++step)
        product<A, false>(s[back], along<kQkWidth>(q_tile, h, step),
                          along<kQkWidth>(k_tile, h, step), step > 0);
    }
    commit();
    wait<0>();
#pragma unroll
    for (int back = 0; back < kLive; ++back) pin(s[back]);
    float top[2], sum[2];
    soften(s, weights, top, sum);
    float o[kVWidth / 2];
#pragma unroll
    for (int back = 0; back < kLive; ++back) pin(weights[back]);
    pin(o);
    fence();
#pragma unroll
    for (int back = 0; back < kLive; ++back) {
      const std::uint64_t v_tile = tile_at(key_tiles[back] + Shape::kQBytes, Shape::kTileBytes);
#pragma unroll
      for (int step = 0; step < kWalkTile / 16; ++step)
        product<A, true>(o, weights[back] + 4 * step, across<kVWidth>(v_tile, h, step),
                         back > 0 || step > 0);
    }
    commit();
    wait<0>();
    pin(o);
#pragma unroll
    for (int back = 0; back < kLive; ++back) pin(weights[back]);
    const int u = static_cast<int>(threadIdx.x) % 4;
#pragma unroll
    for (int up = 0; up < 2; ++up) {
      const std::int32_t i = row + 8 * up;
      const bool inside = i < p.walk.length;
      if (inside && u == 0)
        p.lse[(std::int64_t{work.batch} * p.out.heads + work.head + h) * p.walk.length + i] =
            top[up] * p.scale + logf(sum[up]);
      store_row<A, kVWidth>(row_of(p.out, work.batch, i, work.head + h),
                            static_cast<int>(p.out.width), inside, up, u, 1 / sum[up], o);
    }
  }

  __device__ void run(int group) {
    const int thread = static_cast<int>(threadIdx.x) % 128;
    for (tile = work.run.first + group; tile < work.run.end; tile += Shape::kGroups) {
      row = tile * kWalkTile + thread / 32 * 16 + thread % 32 / 4;
      begins[0] = work.pattern.key_begin(row);
      begins[1] = work.pattern.key_begin(row + 8);
      warp_row = __shfl_sync(0xffffffffu, row, 0);
      warp_begins[0] = work.pattern.key_begin(warp_row);
      warp_begins[1] = work.pattern.key_begin(warp_row + 15);
      const Turn<Shape::kQStages> q(tile - work.run.first);
      const std::int32_t first = larger(work.run.first_key, tile - (kLive - 1));
      for (std::int32_t key = first; key <= tile; ++key)
        Turn<Shape::kStages>(key - work.run.first_key).wait(barriers.full);
      q.wait(barriers.q_full);
#pragma unroll
      for (int h = 0; h < kHeads; ++h) attend(h, at + Shape::kQ + q.stage * Shape::kQBytes);
      release(barriers.q_free[q.stage]);
      // Each tile of keys is let go kLive times; the first queries stand in for those before.
      for (std::int32_t key = first; key <= tile; ++key)
        for (std::int32_t n = tile == work.run.first ? key : tile; n <= tile; ++n)
          release(barriers.free[(key - work.run.first_key) % Shape::kStages]);
    }
  }
};

#endif

template <class A, class Shape>
__global__ void __launch_bounds__(Shape::kThreads, 1)
    short_forward_kernel(const __grid_constant__ ShortForwardParams<A> p) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  extern __shared__ unsigned char tiles[];
  __shared__ ShortForwardBarriers<Shape> barriers;
  const Address at = (address_of(tiles) + 1023) / 1024 * 1024;
  if (threadIdx.x == 0) {
    init(barriers.full, 1), init(barriers.q_full, 1);
    init(barriers.free, 4 * kLive), init(barriers.q_free, 4);
    barriers_ready();
  }
  __syncthreads();
  const ShortWork work = ShortWork::of(p.walk, Shape::kHeads);
  const int group = warpgroup();
  if (group == Shape::kGroups) {
    give_registers<Shape::kLoaderRegisters>();
    if (threadIdx.x % 128 == 0) load_forward<A, Shape>(p, barriers, work, at);
  } else {
    take_registers<Shape::kRegisters>();
    ShortForward<A, Shape> consumer{p, barriers, work, at};
    consumer.run(group);
  }
#endif
}

}  // namespace longstride::ops::cuda::sm90
