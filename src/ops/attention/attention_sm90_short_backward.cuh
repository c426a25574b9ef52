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
#include "ops/attention/attention_sm90_common.cuh"
#include "ops/attention/attention_sm90_short_runs.h"

namespace longstride::ops::cuda::sm90 {

template <class A>
struct ShortBackwardParams {
  CUtensorMap q, k, v, dout, out;  // boxes of 64 rows by 64 columns
  const DevicePart* parts;         // on the device, as is
  const HeadPass* passes;
  std::int32_t pass_count, length, tiles, run_tiles, runs;
  const float* lse;     // [B, H, N]
  Heads<A> dq, dk, dv;  // of single heads
  float scale;
};

// kHeads: of a tile, each kQk / kHeads wide. kColumns: queries that meet a tile of keys at a time.
template <int kQk_, int kV_, int kHeads_>
struct ShortBackwardShape {
  static constexpr int kQk = kQk_, kV = kV_, kHeads = kHeads_;
  static constexpr int kColumns = 32;
  static constexpr int kGroups = kLive, kThreads = 128 * (kGroups + 1);
  static constexpr int kRegisters = 160, kLoaderRegisters = 32;
  static_assert(registers_fit(kGroups, kRegisters, kLoaderRegisters));
  static constexpr int kTileBytes = kWalkTile * 64 * 2;  // of 64 columns
  static constexpr int kQBytes = kTileBytes * kQk / 64, kVBytes = kTileBytes * kV / 64;
  // Tiles in shared memory. K is let go a tile later than V.
  static constexpr int kKStages = kHeads == 2 ? 5 : 6, kVStages = kV == 128 || kHeads == 2 ? 4 : 5;
  static constexpr int kQStages = kV == 128 || kHeads == 2 ? 2 : 3,
                       kOStages = kV == 128 || kHeads == 2 ? 1 : 2;
  static constexpr int kDsBytes = kHeads * kLive * kTileBytes;  // of one tile of queries
  static constexpr int kK = 0, kV0 = kK + kKStages * kQBytes, kQ = kV0 + kVStages * kVBytes,
                       kDo = kQ + kQStages * kQBytes, kO = kDo + kQStages * kVBytes,
                       kDs = kO + kOStages * kVBytes, kBytes = 1024 + kDs + 2 * kDsBytes;
  static constexpr int kMeanThreads = 64;
};

template <class Shape>
struct ShortBackwardShared {
  std::uint64_t k_full[Shape::kKStages], k_free[Shape::kKStages];
  std::uint64_t v_full[Shape::kVStages], v_free[Shape::kVStages];
  std::uint64_t q_full[Shape::kQStages], q_free[Shape::kQStages];  // Q and dO
  std::uint64_t o_full[Shape::kOStages], o_free[Shape::kOStages];
  std::uint64_t rows_full[Shape::kQStages], ds_full[2], ds_free[2];
  // Of queries 2 c and 2 c + 1: both L log2(e), both D.
  float4 rows[Shape::kQStages][Shape::kHeads][kWalkTile / 2];
};
static_assert(sizeof(ShortBackwardShared<ShortBackwardShape<64, 128, 1>>) +
                      ShortBackwardShape<64, 128, 1>::kBytes <=
                  227 * 1024 &&
              sizeof(ShortBackwardShared<ShortBackwardShape<64, 64, 1>>) +
                      ShortBackwardShape<64, 64, 1>::kBytes <=
                  227 * 1024 &&
              sizeof(ShortBackwardShared<ShortBackwardShape<64, 64, 2>>) +
                      ShortBackwardShape<64, 64, 2>::kBytes <=
                  227 * 1024);

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)

// The use number n of a ring: where, and the parity of its turn there.
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

// What a thread block does.
struct ShortWork {
  ShortPattern pattern;
  ShortRun run;
  std::int32_t head, batch;  // head: the first of the tile's
  template <class A, class Shape>
  __device__ static ShortWork of(const ShortBackwardParams<A>& p, Shape) {
    const std::int32_t pairs = p.pass_count / Shape::kHeads;
    const auto block = static_cast<std::int32_t>(blockIdx.x);
    const std::int32_t sequence = block / p.runs;
    ShortWork work;
    const HeadPass& pass = p.passes[sequence % pairs * Shape::kHeads];
    work.pattern = short_pattern(p.parts[pass.only_part]);
    work.run = short_run(work.pattern, block % p.runs, p.tiles, p.run_tiles);
    work.head = pass.head;
    work.batch = sequence / pairs;
    return work;
  }
};

template <class A, class Shape>
struct ShortBackwardLoader {
  const ShortBackwardParams<A>& p;
  ShortBackwardShared<Shape>& shared;
  const ShortWork& work;
  Address at;

  template <int kWidth>
  __device__ void load(int to, const CUtensorMap& map, Address full, std::int32_t tile) const {
#pragma unroll
    for (int c = 0; c < kWidth / 64; ++c)
      load_box(at + static_cast<Address>(to + c * Shape::kTileBytes), map, full, 64 * c,
               tile * kWalkTile, 0, work.head / Shape::kHeads, work.batch);
  }
  // One thread.
  __device__ void run() const {
    std::int32_t key = work.run.first_key;
    for (std::int32_t i = work.run.first; i < work.run.last; ++i) {
      for (; key <= i && key < work.run.end; ++key) {
        const int n = key - work.run.first_key;
        const Turn<Shape::kKStages> k(n);
        const Turn<Shape::kVStages> v(n);
        k.wait_free(shared.k_free);
        const Address k_full = address_of(&shared.k_full[k.stage]);
        arrive_expecting(k_full, Shape::kQBytes);
        load<Shape::kQk>(Shape::kK + k.stage * Shape::kQBytes, p.k, k_full, key);
        v.wait_free(shared.v_free);
        const Address v_full = address_of(&shared.v_full[v.stage]);
        arrive_expecting(v_full, Shape::kVBytes);
        load<Shape::kV>(Shape::kV0 + v.stage * Shape::kVBytes, p.v, v_full, key);
      }
      const Turn<Shape::kQStages> q(i - work.run.first);
      const Turn<Shape::kOStages> o(i - work.run.first);
      q.wait_free(shared.q_free);
      const Address q_full = address_of(&shared.q_full[q.stage]);
      arrive_expecting(q_full, Shape::kQBytes + Shape::kVBytes);
      load<Shape::kQk>(Shape::kQ + q.stage * Shape::kQBytes, p.q, q_full, i);
      load<Shape::kV>(Shape::kDo + q.stage * Shape::kVBytes, p.dout, q_full, i);
      o.wait_free(shared.o_free);
      const Address o_full = address_of(&shared.o_full[o.stage]);
      arrive_expecting(o_full, Shape::kVBytes);
      load<Shape::kV>(Shape::kO + o.stage * Shape::kVBytes, p.out, o_full, i);
    }
  }

  // Of 8 numbers each.
  __device__ static float dot(Address a, Address b) {
    std::uint32_t x[4], y[4];
    asm volatile("ld.shared.v4.u32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(x[0]), "=r"(x[1]), "=r"(x[2]), "=r"(x[3])
                 : "r"(a)
                 : "memory");
    asm volatile("ld.shared.v4.u32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(y[0]), "=r"(y[1]), "=r"(y[2]), "=r"(y[3])
                 : "r"(b)
                 : "memory");
    float sum = 0;
#pragma unroll
    for (int n = 0; n < 4; ++n) {
      const float2 f = unpacked<A>(x[n]), g = unpacked<A>(y[n]);
      sum += f.x * g.x + f.y * g.y;
    }
    return sum;
  }
  // Two warps, a thread a row: L and D of the rows of each tile.
  __device__ void make_rows(int row) const {
    const std::int64_t head = std::int64_t{work.batch} * p.dq.heads + work.head;
    for (std::int32_t i = work.run.first; i < work.run.last; ++i) {
      const Turn<Shape::kQStages> q(i - work.run.first);
      const Turn<Shape::kOStages> o(i - work.run.first);
      const std::int32_t position = i * kWalkTile + row;
      float lse[Shape::kHeads];
#pragma unroll
      for (int h = 0; h < Shape::kHeads; ++h)
        lse[h] = position < p.length ? p.lse[(head + h) * p.length + position] : -INFINITY;
      q.wait(shared.q_full);
      o.wait(shared.o_full);
      const Address dout = at + Shape::kDo + q.stage * Shape::kVBytes + row * kRowBytes;
      const Address out = at + Shape::kO + o.stage * Shape::kVBytes + row * kRowBytes;
#pragma unroll
      for (int h = 0; h < Shape::kHeads; ++h) {
        constexpr int kPieces = Shape::kV / 8 / Shape::kHeads;
        float sum = 0;
#pragma unroll 2
        for (int n = h * kPieces; n < (h + 1) * kPieces; ++n) {
          const Address piece = n / 8 * Shape::kTileBytes + (n % 8 ^ (row & 7)) * 16;
          sum += dot(dout + piece, out + piece);
        }
        auto* const to = reinterpret_cast<float*>(&shared.rows[q.stage][h][row / 2]) + row % 2;
        to[0] = lse[h] == -INFINITY ? INFINITY : lse[h] * 1.4426950408889634f;
        to[2] = sum;
      }
      release(shared.o_free[o.stage]);
      release(shared.rows_full[q.stage]);
    }
  }
};

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
  // Columns of head h, as left or right factor along the rows, and as right factor across them.
  template <int kWidth>
  __device__ static std::uint64_t along(std::uint64_t tile, int h, int step) {
    return step_along(tile, h * (kWidth / 16) + step, kWalkTile);
  }
  template <int kWidth>
  __device__ static std::uint64_t across(std::uint64_t tile, int h, int step) {
    return step_across(tile, step) + static_cast<std::uint64_t>(h * kWidth * 2 >> 4);
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
                               static_cast<int>(p.dk.width), j < p.length, up, u, p.scale, dk[h]);
        store_row<A, kVWidth>(row_of(p.dv, work.batch, j, work.head + h),
                              static_cast<int>(p.dv.width), j < p.length, up, u, 1.0f, dv[h]);
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
                             static_cast<int>(p.dq.width) - column, n < p.length, up, u, p.scale,
                             dq);
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
  const Address at = (address_of(tiles) + 1023) / 1024 * 1024;
  if (threadIdx.x == 0) {
    constexpr int kWarps = 4 * Shape::kGroups;
    const auto init = [](auto& barriers, int arrivals) {
      for (auto& barrier : barriers) barrier_init(address_of(&barrier), arrivals);
    };
    init(shared.k_full, 1), init(shared.v_full, 1), init(shared.q_full, 1), init(shared.o_full, 1);
    init(shared.k_free, 4), init(shared.v_free, 4), init(shared.q_free, kWarps);
    init(shared.o_free, Shape::kMeanThreads / 32), init(shared.rows_full, Shape::kMeanThreads / 32);
    init(shared.ds_full, kWarps), init(shared.ds_free, 4);
    barriers_ready();
  }
  __syncthreads();
  const ShortWork work = ShortWork::of(p, Shape{});
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
