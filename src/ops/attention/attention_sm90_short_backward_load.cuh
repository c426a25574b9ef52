// Backward of short line patterns on Hopper: what lies in shared memory, and the warpgroup that
// fills it (attention_sm90_short_backward.cuh).
#pragma once

#include "ops/attention/attention_sm90_short_walk.cuh"

namespace longstride::ops::cuda::sm90 {

template <class A>
struct ShortBackwardParams {
  CUtensorMap q, k, v, dout, out;  // boxes of 64 rows by 64 columns
  ShortWalk walk;
  const float* lse;     // [B, H, N]
  Heads<A> dq, dk, dv;  // of single heads
  float scale;
};

// kHeads: of a tile, each kQk / kHeads wide. kColumns: queries that meet a tile of keys at a time.
template <int kQk_, int kV_, int kHeads_>
struct ShortBackwardShape {
  static constexpr int kQk = kQk_, kV = kV_, kHeads = kHeads_;
  // More take more registers than there are. With values of 128 already these do: ptxas waits for
  // each product (C7512), which is still faster than 16 columns at a time.
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

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)

template <class A, class Shape>
struct ShortBackwardLoader {
  const ShortBackwardParams<A>& p;
  ShortBackwardShared<Shape>& shared;
  const ShortWork& work;
  Address at;

  template <int kWidth>
  __device__ void load(int to, const CUtensorMap& map, Address full, std::int32_t tile) const {
    load_tile<kWidth>(at + static_cast<Address>(to), map, full, tile, work.head / Shape::kHeads,
                      work.batch);
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
        lse[h] =
            position < p.walk.length ? p.lse[(head + h) * p.walk.length + position] : -INFINITY;
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

#endif

}  // namespace longstride::ops::cuda::sm90
