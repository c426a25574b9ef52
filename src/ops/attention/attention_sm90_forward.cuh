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
// two overlap (dense, fixed), or memory (local, row).
#pragma once

#include <cmath>

#include "device/number.cuh"
#include "device/tma_sm90.cuh"
#include "device/wgmma_sm90.cuh"
#include "ops/attention/attention_sm90_tiles.cuh"
#include "tensor/tensor.h"

namespace longstride::ops::cuda::sm90 {

inline constexpr int kKeys = 128;  // of a tile

template <class A>
struct ForwardParams {
  CUtensorMap q, k[kMaxShapes], v[kMaxShapes];
  KeyShape shapes[kMaxShapes];
  const DevicePart* parts;  // on the device, as is
  const HeadPass* passes;   // [order.heads / batch]
  std::int32_t pass_count, length;
  Order order;
  Heads<A> out;
  float* lse;
  float scale;
};

template <int kQk, int kV>
struct ForwardShape {
  static constexpr int kGroups = kQk == 64 && kV == 64 ? 3 : 2;
  static constexpr int kRows = 64 * kGroups;
  static constexpr int kThreads = 128 * (kGroups + 1);
  static constexpr int kRegisters = kGroups == 3 ? 160 : 240,
                       kLoaderRegisters = kGroups == 3 ? 32 : 24;
  static constexpr int kQBytes = kRows * kQk * 2, kKBytes = kKeys * kQk * 2,
                       kVBytes = kKeys * kV * 2;
  static constexpr int kStages = (kQk == 64 ? (kV == 64 ? 5 : 4) : 2);
  static constexpr int kBytes = 1024 + 2 * kQBytes + kStages * (kKBytes + kVBytes);
};

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)

using namespace device::sm90;  // NOLINT: the verbs of this architecture

__device__ inline float exp2_of(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
template <class A>
__device__ std::uint32_t packed(float low, float high) {
  std::uint32_t both;
  if constexpr (std::is_same_v<A, bf16>)
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(both) : "f"(high), "f"(low));
  else
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(both) : "f"(high), "f"(low));
  return both;
}
template <class A>
__device__ float2 unpacked(std::uint32_t both) {
  A low, high;
  low.bits = static_cast<std::uint16_t>(both);
  high.bits = static_cast<std::uint16_t>(both >> 16);
  return {device::to_float(low), device::to_float(high)};
}

template <class A>
__device__ A* row_of(const Heads<A>& x, std::int64_t batch, std::int64_t i, std::int64_t head) {
  return x.data + (batch * x.length + i) * x.row_stride + head * x.width;
}

// Of four threads u = 0 .. 3, each with x[k]: afterwards thread u has what thread k had as x[u].
__device__ inline void transpose_quad(std::uint32_t (&x)[4], int u) {
#pragma unroll
  for (int bit = 1; bit <= 2; bit *= 2)
#pragma unroll
    for (int k = 0; k < 4; ++k) {
      if (k & bit) continue;
      const bool upper = u & bit;
      const std::uint32_t other = __shfl_xor_sync(0xffffffffu, upper ? x[k] : x[k | bit], bit);
      (upper ? x[k] : x[k | bit]) = other;
    }
}

// A place in a ring of tiles and the parity of its turn.
template <int kStages>
struct Ring {
  int stage = 0;
  unsigned parity = 0;
  __device__ void advance() {
    if (++stage == kStages) stage = 0, parity ^= 1;
  }
};

template <int kStages>
struct ForwardBarriers {
  std::uint64_t q_full[2], q_free[2];
  std::uint64_t k_full[kStages], k_free[kStages], v_full[kStages], v_free[kStages];
};

// Online softmax of 64 x 128 scores; thread registers as of wgmma: two rows, of which four threads
// have a part each.
struct Softmax {
  float top[2] = {-INFINITY, -INFINITY};  // largest score so far
  float sum[2] = {0, 0};                  // of exp(score - top), of this thread's columns
  float shrink[2];                        // what earlier sums and products are to be scaled by

  __device__ void operator()(float (&s)[kKeys / 2], float scale_log2) {
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      float largest = top[h];
#pragma unroll
      for (int j = 0; j < kKeys / 8; ++j)
        largest = fmaxf(largest, fmaxf(s[4 * j + 2 * h], s[4 * j + 2 * h + 1]));
      largest = fmaxf(largest, __shfl_xor_sync(0xffffffffu, largest, 1));
      largest = fmaxf(largest, __shfl_xor_sync(0xffffffffu, largest, 2));
      const float base = largest == -INFINITY ? 0 : largest * scale_log2;
      shrink[h] = exp2_of(top[h] * scale_log2 - base);
      top[h] = largest;
      float even = sum[h] * shrink[h], odd = 0;
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
  }
};

// What a warpgroup knows of the part whose tiles pass by: what its first and last query see, and
// what each thread's two rows see.
struct Sight {
  std::int32_t begin, end;          // of all its queries together
  std::int32_t all_begin, all_end;  // seen by each of its queries
  std::int32_t row_begin[2], row_end[2];

  template <class Tiles>
  __device__ void look(const Tiles& tiles, std::int32_t first, std::int32_t row,
                       std::int32_t length) {
    const std::int32_t last = length - 1;
    const KeyRange of_first = tiles.walk.seen_by(smaller(first, last));
    const KeyRange of_last = tiles.walk.seen_by(smaller(first + 63, last));
    begin = of_first.begin, end = first < length ? of_last.end : 0;
    all_begin = of_last.begin, all_end = of_first.end;
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const KeyRange mine = tiles.walk.seen_by(smaller(row + 8 * h, last));
      row_begin[h] = mine.begin, row_end[h] = mine.end;
    }
  }
  template <class Tiles>
  __device__ bool sees(const Tiles& tiles) const {
    return tiles.begin < end && tiles.begin + tiles.keys > begin;
  }
  template <class Tiles>
  __device__ bool sees_all(const Tiles& tiles) const {
    return tiles.begin >= all_begin && tiles.begin + tiles.keys <= all_end && tiles.keys == kKeys;
  }
  template <class Tiles>
  __device__ void mask(float (&s)[kKeys / 2], const Tiles& tiles, int u) const {
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const std::int32_t from = row_begin[h] - tiles.begin - 2 * u;
      const std::int32_t to = smaller(row_end[h] - tiles.begin, tiles.keys) - 2 * u;
#pragma unroll
      for (int j = 0; j < kKeys / 8; ++j)
#pragma unroll
        for (int e = 0; e < 2; ++e)
          if (8 * j + e < from || 8 * j + e >= to) s[4 * j + 2 * h + e] = -INFINITY;
    }
  }
};

// Rows `row` and `row` + 8 of a thread: normalised, merged with an earlier pass where there was
// one.
template <class A, int kV>
__device__ void finish(const ForwardParams<A>& p, const HeadPass& pass, int batch, std::int32_t row,
                       int u, const Softmax& softmax, float (&o)[kV / 2]) {
#pragma unroll
  for (int h = 0; h < 2; ++h) {
    float sum = softmax.sum[h];
    sum += __shfl_xor_sync(0xffffffffu, sum, 1);
    sum += __shfl_xor_sync(0xffffffffu, sum, 2);
    const std::int32_t i = row + 8 * h;
    const bool inside = i < p.length;
    A* const out = row_of(p.out, batch, inside ? i : 0, pass.head);
    float* const kept =
        p.lse + (std::int64_t{batch} * p.out.heads + pass.head) * p.length + (inside ? i : 0);
    float lse = sum > 0 ? softmax.top[h] * p.scale + logf(sum) : -INFINITY;
    float weight = sum > 0 ? 1 / sum : 0, weight_before = 0;
    if (pass.merges != 0) {
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

template <class A, int kQk, int kV>
__device__ void load_tiles(const ForwardParams<A>& p, Address q, Address k, Address v,
                           ForwardBarriers<ForwardShape<kQk, kV>::kStages>& barriers) {
  using Shape = ForwardShape<kQk, kV>;
  Ring<2> queries;
  Ring<Shape::kStages> ring;
  const std::int32_t blocks = static_cast<std::int32_t>(gridDim.x);
  for (std::int64_t round = 0;; ++round) {
    const std::int64_t index = p.order.index(round, static_cast<std::int32_t>(blockIdx.x), blocks);
    if (round * blocks >= p.order.size()) return;
    if (index >= p.order.size()) continue;
    const Order::Work work = p.order.at(index);
    const int batch = work.head / p.pass_count;
    const HeadPass& pass = p.passes[work.head % p.pass_count];
    const std::int32_t first = (p.order.tiles - 1 - work.tile) * Shape::kRows;

    const Address q_full = address_of(&barriers.q_full[queries.stage]);
    wait_for(address_of(&barriers.q_free[queries.stage]), queries.parity ^ 1);
    arrive_expecting(q_full, Shape::kQBytes);
    for (int c = 0; c < kQk / 64; ++c)
      load_box(q + queries.stage * Shape::kQBytes + c * Shape::kRows * kRowBytes, p.q, q_full,
               64 * c, first, 0, pass.head, batch);
    queries.advance();

    KeyTiles<kKeys> tiles(p.parts, pass, first, smaller(first + Shape::kRows, p.length) - 1);
    bool new_part = false;
    int shape = 0;
    while (tiles.next(new_part)) {
      if (new_part) shape = shape_of(*tiles.walk.part, p.shapes);
      const int columns = keys_in_box(tiles.width(), kKeys) * kRowBytes;
      const std::int32_t column = tiles.column(), block = tiles.block();
      const Address k_full = address_of(&barriers.k_full[ring.stage]);
      const Address v_full = address_of(&barriers.v_full[ring.stage]);
      wait_for(address_of(&barriers.k_free[ring.stage]), ring.parity ^ 1);
      arrive_expecting(k_full, columns * (kQk / 64));
      for (int c = 0; c < kQk / 64; ++c)
        load_box(k + ring.stage * Shape::kKBytes + c * kKeys * kRowBytes, p.k[shape], k_full,
                 64 * c, column, block, pass.head, batch);
      wait_for(address_of(&barriers.v_free[ring.stage]), ring.parity ^ 1);
      arrive_expecting(v_full, columns * (kV / 64));
      for (int c = 0; c < kV / 64; ++c)
        load_box(v + ring.stage * Shape::kVBytes + c * kKeys * kRowBytes, p.v[shape], v_full,
                 64 * c, column, block, pass.head, batch);
      ring.advance();
    }
  }
}

// The work of one warpgroup.
template <class A, int kQk, int kV>
struct ForwardConsumer {
  using Shape = ForwardShape<kQk, kV>;
  const ForwardParams<A>& p;
  ForwardBarriers<Shape::kStages>& barriers;
  Address q, k, v;
  int group, lane;  // of the warpgroup's number, of the warp
  float s[kKeys / 2], o[kV / 2];
  std::uint32_t weights[kKeys / 4];  // P of the tile before
  Softmax softmax;
  Sight sight;
  bool pending = false;  // weights are still to be multiplied with the values of `behind`
  Ring<Shape::kStages> ring, behind;

  __device__ void wait_k() { wait_for(address_of(&barriers.k_full[ring.stage]), ring.parity); }
  __device__ void wait_v(const Ring<Shape::kStages>& at) {
    wait_for(address_of(&barriers.v_full[at.stage]), at.parity);
  }
  __device__ void free(std::uint64_t& barrier) {
    if (lane == 0) arrive(address_of(&barrier));
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
    free(barriers.v_free[behind.stage]);
    pending = false;
  }
  __device__ void skip() {
    flush();
    wait_k();
    free(barriers.k_free[ring.stage]);
    wait_v(ring);
    free(barriers.v_free[ring.stage]);
  }
  template <class Tiles>
  __device__ void soften(const Tiles& tiles) {
    free(barriers.k_free[ring.stage]);
    if (!sight.sees_all(tiles)) sight.mask(s, tiles, lane % 4);
    softmax(s, p.scale * 1.4426950408889634f);
  }
  __device__ void take_weights() {
#pragma unroll
    for (int j = 0; j < kV / 2; ++j) o[j] *= softmax.shrink[j / 2 % 2];
#pragma unroll
    for (int j = 0; j < kKeys / 4; ++j) weights[j] = packed<A>(s[2 * j], s[2 * j + 1]);
    behind = ring;
    pending = true;
  }
  template <class Tiles>
  __device__ void tile(const Tiles& tiles, Address queries) {
    wait_k();
    if (pending) {
      pin(s), pin(o), pin(weights);
      fence();
      start_scores(queries);
      wait_v(behind);
      start_values();
      wait<1>();
      pin(s);
      soften(tiles);
      wait<0>();
      pin(o), pin(weights);
      free(barriers.v_free[behind.stage]);
      take_weights();
    } else {
      pin(s);
      fence();
      start_scores(queries);
      wait<0>();
      pin(s);
      soften(tiles);
      take_weights();
    }
  }
  __device__ void run() {
    Ring<2> query_ring;
    const std::int32_t blocks = static_cast<std::int32_t>(gridDim.x);
    const int in_group = static_cast<int>(threadIdx.x) % 128;
    for (std::int64_t round = 0; round * blocks < p.order.size(); ++round) {
      const std::int64_t index =
          p.order.index(round, static_cast<std::int32_t>(blockIdx.x), blocks);
      if (index >= p.order.size()) continue;
      const Order::Work work = p.order.at(index);
      const HeadPass& pass = p.passes[work.head % p.pass_count];
      const std::int32_t tile_first = (p.order.tiles - 1 - work.tile) * Shape::kRows;
      const std::int32_t first = tile_first + 64 * group;
      const std::int32_t row = first + in_group / 32 * 16 + lane / 4;
      const Address queries = q + query_ring.stage * Shape::kQBytes;
      softmax = {};
#pragma unroll
      for (int j = 0; j < kV / 2; ++j) o[j] = 0;
      wait_for(address_of(&barriers.q_full[query_ring.stage]), query_ring.parity);
      KeyTiles<kKeys> tiles(p.parts, pass, tile_first,
                            smaller(tile_first + Shape::kRows, p.length) - 1);
      bool new_part = false;
      while (tiles.next(new_part)) {
        if (new_part) sight.look(tiles, first, row, p.length);
        if (sight.sees(tiles))
          tile(tiles, queries);
        else
          skip();
        ring.advance();
      }
      free(barriers.q_free[query_ring.stage]);
      flush();
      query_ring.advance();
      finish<A, kV>(p, pass, work.head / p.pass_count, row, lane % 4, softmax, o);
    }
  }
};

#endif

template <class A, int kQk, int kV>
__global__ void __launch_bounds__(ForwardShape<kQk, kV>::kThreads, 1)
    forward_kernel(const __grid_constant__ ForwardParams<A> p) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  using Shape = ForwardShape<kQk, kV>;
  extern __shared__ unsigned char shared[];
  __shared__ ForwardBarriers<Shape::kStages> barriers;
  const Address q = (address_of(shared) + 1023) / 1024 * 1024;
  const Address k = q + 2 * Shape::kQBytes, v = k + Shape::kStages * Shape::kKBytes;
  const int group = __shfl_sync(0xffffffffu, static_cast<int>(threadIdx.x) / 128, 0);  // uniform
  // A box may leave rows of a tile alone; masked weights of 0 must not meet a NaN there.
  for (Address at = k + threadIdx.x * 16; at < v + Shape::kStages * Shape::kVBytes;
       at += Shape::kThreads * 16)
    asm volatile("st.shared.v4.u32 [%0], {%1, %1, %1, %1};" ::"r"(at), "r"(0) : "memory");
  if (threadIdx.x == 0) {
    constexpr int kWarps = 4 * Shape::kGroups;
    for (int n = 0; n < 2; ++n) {
      barrier_init(address_of(&barriers.q_full[n]), 1);
      barrier_init(address_of(&barriers.q_free[n]), kWarps);
    }
    for (int n = 0; n < Shape::kStages; ++n) {
      barrier_init(address_of(&barriers.k_full[n]), 1);
      barrier_init(address_of(&barriers.v_full[n]), 1);
      barrier_init(address_of(&barriers.k_free[n]), kWarps);
      barrier_init(address_of(&barriers.v_free[n]), kWarps);
    }
    barriers_ready();
  }
  async_after_writes();
  __syncthreads();
  if (group == Shape::kGroups) {
    give_registers<Shape::kLoaderRegisters>();
    if (threadIdx.x % 128 == 0) load_tiles<A, kQk, kV>(p, q, k, v, barriers);
  } else {
    take_registers<Shape::kRegisters>();
    ForwardConsumer<A, kQk, kV> consumer{
        p, barriers, q, k, v, group, static_cast<int>(threadIdx.x) % 32};
    consumer.run();
  }
#endif
}

}  // namespace longstride::ops::cuda::sm90
