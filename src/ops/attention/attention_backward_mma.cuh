// Attention backward on tensor cores (m16n8k16), bf16 and fp16, any width up to the tile's.
//
//   S^T = K Q^T    P^T = 2^{scale log2 e S^T - L log2 e}    dP^T = V dO^T    dS^T = P^T (dP^T - D)
//   dV += P^T dO   dK += dS^T Q   (scaled once, at the end)  dQ = dS K
//
// A warp owns 16 or 32 keys and all queries of a tile, so P^T and dS^T come out of their products
// as the operands that dV and dK need: only dS goes through shared memory, for dQ. 16 queries and a
// warp's keys that do not see each other are skipped. K and V stay, Q and dO come tile by tile.
//
// work    2 (3 d_qk + 2 d_v) flops a pair
// bytes   q, k, v, dout, dq, dk, dv once (columns, rows); dQ in float stays in the L2 cache
// bound   latency and then memory for columns, rows and local: few warps fit beside each other;
//         the tensor cores for dense and summaries
#pragma once

#include <type_traits>

#include "ops/attention/attention_backward_fragments.cuh"
#include "ops/attention/attention_backward_walk.cuh"
#include "ops/attention/mma.cuh"

namespace longstride::ops::cuda {

// kSixteens   times 16 keys a warp
// kHalves     warps that own the same keys, each with that share of the columns of dK and dV
// kBlocks     of a multiprocessor
// kHoldKeys   fragments of K and V stay in registers
// kStageCount tiles of Q and dO in shared memory
template <int kQkWidth, int kVWidth, int kSixteens, int kWarps_, int kQueries_, int kHalves_,
          int kBlocks_, bool kHoldKeys_, int kStageCount_ = 2>
struct BackwardShape {
  static constexpr int kQk = kQkWidth, kV = kVWidth, kWarps = kWarps_, kThreads = 32 * kWarps,
                       kQueries = kQueries_, kHalves = kHalves_, kBlocks = kBlocks_,
                       kMs = kSixteens, kWarpKeys = 16 * kMs, kKeys = kWarps / kHalves * kWarpKeys;
  static constexpr bool kHoldKeys = kHoldKeys_;
  static constexpr int kRegisters = 65536 / (kThreads * kBlocks);  // of a thread, at most
  static constexpr int kStageCount = kStageCount_;
  // dQ: a warp has 16 kQueryMs queries and kDqColumns columns.
  static constexpr int kQueryMs = kQueries >= 32 ? 2 : 1, kQueryWarps = kQueries / (16 * kQueryMs),
                       kDqColumns = kQk / (kWarps / kQueryWarps);
  using MaskWord = std::conditional_t<kQueries == 16, std::uint16_t, std::uint32_t>;
  static constexpr int kMaskBits = 8 * static_cast<int>(sizeof(MaskWord));
  static_assert(kDqColumns % 16 == 0 && kWarps % kQueryWarps == 0);

  static constexpr int kKBytes = kKeys * kQk * 2, kVBytes = kKeys * kV * 2,
                       kQBytes = kQueries * kQk * 2, kDoBytes = kQueries * kV * 2,
                       kDsBytes = kKeys * kQueries * 2, kMaskBytes = kKeys * kQueries / 8;
  static constexpr int kV0 = kKBytes, kStages = kV0 + kVBytes, kStageBytes = kQBytes + kDoBytes,
                       kDs = kStages + kStageCount * kStageBytes, kMask = kDs + kDsBytes,
                       kRows = kMask + kMaskBytes,
                       kRowsBytes = (static_cast<int>(sizeof(QueryRows<kQueries>)) + 15) / 16 * 16,
                       kPositions = kRows + kStageCount * kRowsBytes,
                       kBytes = kPositions + 4 * kKeys;
};

template <class A, class Shape>
class BackwardBlock {
 public:
  __device__ __forceinline__ BackwardBlock(const BackwardArguments<A>& arguments, char* shared)
      : a_(arguments),
        at_(shared),
        shared_(shared_address(shared)),
        key_(key_tile(arguments.walk, blockIdx.x)),
        tiles_(arguments.walk, key_) {}

  __device__ __forceinline__ void run() {
    if (key_.count < 1) return;
    bool more = tiles_.next(a_.walk, key_, WarpSearch{});
    if (!more && a_.stores == 0 && a_.walk.geometry.splits == 1) return;
    load_keys();
    copies_commit();
    if (more) load_queries(0);
    copies_commit();
    if constexpr (Shape::kHoldKeys) {
      copies_wait<1>();
      __syncthreads();
      hold_keys();
    }
    int stage = 0;
    std::int32_t* signal = nullptr;
    std::int32_t signal_value = 0;
    while (more) {
      const QueryTiles now = tiles_;
      more = tiles_.next(a_.walk, key_, WarpSearch{});
      copies_wait<0>();
      __syncthreads();
      if (signal != nullptr && threadIdx.x == 0) publish(signal, signal_value);
      if (Shape::kStageCount == 2 && more) load_queries(stage ^ 1);
      copies_commit();
      const QueryRows<Shape::kQueries>& rows = rows_of(stage);
      if (key_.part->masked != 0) make_mask(now);
      keys_of_queries(stage);
      const std::int32_t before = rows.before, behind = rows.behind;
      if (before > 0 && threadIdx.x == 0) wait_for(a_.done + now.shared, before);
      __syncthreads();
      queries_of_keys(stage, now, before, behind);
      signal = behind > 0 ? a_.done + now.shared : nullptr;
      signal_value = before + 1;
      if constexpr (Shape::kStageCount == 2) {
        stage ^= 1;
      } else if (more) {
        __syncthreads();
        load_queries(0);
        copies_commit();
      }
    }
    copies_wait<0>();
    __syncthreads();
    if (signal != nullptr && threadIdx.x == 0) publish(signal, signal_value);
    finish();
  }

 private:
  static constexpr int kKeyNs = Shape::kQk / 8 / Shape::kHalves,
                       kValueNs = Shape::kV / 8 / Shape::kHalves, kMs = Shape::kMs;

  __device__ __forceinline__ int warp() const { return static_cast<int>(threadIdx.x / 32); }
  __device__ __forceinline__ int first_key() const {
    return warp() % (Shape::kWarps / Shape::kHalves) * Shape::kWarpKeys;
  }
  __device__ __forceinline__ int half() const { return warp() / (Shape::kWarps / Shape::kHalves); }
  __device__ __forceinline__ std::uint32_t q_at(int stage) const {
    return shared_ + Shape::kStages + stage * Shape::kStageBytes;
  }
  __device__ __forceinline__ std::uint32_t dout_at(int stage) const {
    return q_at(stage) + Shape::kQBytes;
  }
  __device__ __forceinline__ QueryRows<Shape::kQueries>& rows_of(int stage) const {
    return *reinterpret_cast<QueryRows<Shape::kQueries>*>(at_ + Shape::kRows +
                                                          stage * Shape::kRowsBytes);
  }
  __device__ __forceinline__ std::int32_t* key_positions() const {
    return reinterpret_cast<std::int32_t*>(at_ + Shape::kPositions);
  }
  __device__ __forceinline__ typename Shape::MaskWord* mask() const {
    return reinterpret_cast<typename Shape::MaskWord*>(at_ + Shape::kMask);
  }
  // Of position 0 of this block's sequence and head.
  template <class T>
  __device__ __forceinline__ T* base(const Heads<T>& x) const {
    return x.data + key_.batch * x.length * x.row_stride + key_.head * x.width;
  }

  __device__ __forceinline__ void load_keys() {
    for (int n = static_cast<int>(threadIdx.x); n < Shape::kKeys; n += Shape::kThreads)
      key_positions()[n] = n < key_.count ? position_of_key(a_.walk, key_, n) : -1;
    __syncthreads();
    const auto load = [&]<int kWidth>(const Heads<const A>& x, int to) {
      load_rows<kWidth, Shape::kKeys, Shape::kThreads>(base(x), x.width, a_.whole_pieces != 0,
                                                       at_ + to, [&](int r) {
                                                         const std::int32_t i = key_positions()[r];
                                                         return i < 0 ? -1 : i * x.row_stride;
                                                       });
    };
    load.template operator()<Shape::kQk>(a_.k, 0);
    load.template operator()<Shape::kV>(a_.v, Shape::kV0);
  }

  // Of the current tile of tiles_.
  __device__ __forceinline__ void load_queries(int stage) {
    const std::int32_t first = query(*key_.part, tiles_.lane, tiles_.step);
    const std::int32_t stride = query(*key_.part, tiles_.lane, tiles_.step + 1) - first;
    const std::int32_t count = tiles_.count;
    const auto load = [&]<int kWidth>(const Heads<const A>& x, int to) {
      const std::int64_t begin = first * x.row_stride, step = stride * x.row_stride;
      load_rows<kWidth, Shape::kQueries, Shape::kThreads>(
          base(x), x.width, a_.whole_pieces != 0, at_ + to,
          [&](int r) { return r < count ? begin + r * step : -1; });
    };
    const int to = Shape::kStages + stage * Shape::kStageBytes;
    load.template operator()<Shape::kQk>(a_.q, to);
    load.template operator()<Shape::kV>(a_.dout, to + Shape::kQBytes);
    // By the last warps: where the tile is a triangle, theirs is the smaller part of the work.
    const auto r =
        static_cast<std::int32_t>(threadIdx.x) - (Shape::kThreads - larger(32, Shape::kQueries));
    if (r < 0) return;
    QueryRows<Shape::kQueries>& rows = rows_of(stage);
    describe_row<Shape::kQueries>(a_.walk, key_, tiles_, r, rows);
    if (r >= Shape::kQueries) return;
    const float2* const from =
        a_.rows + (static_cast<std::int64_t>(key_.batch) * a_.q.heads + key_.head) * a_.walk.length;
    copy8(shared_address(rows.row + r), from + (r < count ? first + r * stride : 0), r < count);
  }

  // Bit q % kMaskBits of word q / kMaskBits of a key: whether the pair is kept.
  __device__ __forceinline__ void make_mask(const QueryTiles& now) {
    constexpr int kBits = Shape::kMaskBits, kWords = Shape::kQueries / kBits;
    for (int n = static_cast<int>(threadIdx.x); n < Shape::kKeys * kWords; n += Shape::kThreads) {
      const std::int32_t j = key_positions()[n / kWords];
      std::uint32_t bits = 0;
      for (int q = 0; q < kBits; ++q) {
        const int r = n % kWords * kBits + q;
        if (j < 0 || r >= now.count) break;
        const std::int32_t i = query(*key_.part, now.lane, now.step + r);
        if (j <= i && keeps(*key_.part, i, j)) bits |= 1u << q;
      }
      mask()[n] = static_cast<typename Shape::MaskWord>(bits);
    }
    __syncthreads();
  }

  __device__ __forceinline__ bool sees(const int4& sixteen, int key, int keys) const {
    return sixteen.x < key + keys && sixteen.y > key;
  }

  // dV and dK of the warp's keys from a query tile; dS for queries_of_keys.
  __device__ __forceinline__ void keys_of_queries(int stage) {
    const QueryRows<Shape::kQueries>& rows = rows_of(stage);
    const int key = first_key();
#pragma unroll 1
    for (int c = 0; c < Shape::kQueries / 16; ++c) {
      const int4 sixteen = rows.of_sixteen[c];
      if (!sees(sixteen, key, Shape::kWarpKeys)) continue;
      float s[kMs][2][4] = {}, dp[kMs][2][4] = {};
#pragma unroll
      for (int d = 0; d < larger(Shape::kQk, Shape::kV) / 16; ++d) {
        if (d < Shape::kQk / 16)
          scores<A, kMs, Shape::kQk>(s, d, Shape::kHoldKeys ? k_ : nullptr, shared_, key,
                                     q_at(stage), 16 * c);
        if (d < Shape::kV / 16)
          scores<A, kMs, Shape::kV>(dp, d, Shape::kHoldKeys ? v_ : nullptr, shared_ + Shape::kV0,
                                    key, dout_at(stage), 16 * c);
      }
      const bool free = sixteen.z <= key && sixteen.w >= key + Shape::kWarpKeys;
      std::uint32_t p[kMs][4], ds[kMs][4];
      gradients_of_scores(rows, 16 * c, key, free, s, dp, p, ds);
      if (half() == 0) store_ds(16 * c, key, ds);
      accumulate<A, kMs, kValueNs, Shape::kV>(dv_, p, dout_at(stage), 16 * c, half() * kValueNs);
      accumulate<A, kMs, kKeyNs, Shape::kQk>(dk_, ds, q_at(stage), 16 * c, half() * kKeyNs);
    }
  }

  __device__ __forceinline__ void hold_keys() {
    const MatrixLane lane = lane_of_a();
#pragma unroll
    for (int m = 0; m < kMs; ++m) {
      const int row = first_key() + 16 * m + lane.row;
#pragma unroll
      for (int d = 0; d < Shape::kQk / 16; ++d)
        load_matrices(k_[m][d], shared_ + piece_at<Shape::kQk>(row, 2 * d + lane.piece));
#pragma unroll
      for (int d = 0; d < Shape::kV / 16; ++d)
        load_matrices(v_[m][d],
                      shared_ + Shape::kV0 + piece_at<Shape::kV>(row, 2 * d + lane.piece));
    }
  }

  // P^T and dS^T, packed as A fragments.
  __device__ __forceinline__ void gradients_of_scores(const QueryRows<Shape::kQueries>& rows,
                                                      int first, int key, bool free,
                                                      const float (&s)[kMs][2][4],
                                                      const float (&dp)[kMs][2][4],
                                                      std::uint32_t (&p)[kMs][4],
                                                      std::uint32_t (&ds)[kMs][4]) {
    const int lane = static_cast<int>(threadIdx.x & 31);
    constexpr float kLog2E = 1.4426950408889634f;
    const float scale = a_.scale * kLog2E;
#pragma unroll
    for (int n = 0; n < 2; ++n) {
      const int q = first + 8 * n + lane % 4 * 2;
      const float4 two = *reinterpret_cast<const float4*>(rows.row + q);
      const int4 seen = free ? int4{} : *reinterpret_cast<const int4*>(rows.seen + q);
#pragma unroll
      for (int m = 0; m < kMs; ++m)
#pragma unroll
        for (int up = 0; up < 2; ++up) {
          float p0 = fast_exp2(s[m][n][2 * up] * scale - two.x);
          float p1 = fast_exp2(s[m][n][2 * up + 1] * scale - two.z);
          float d0 = p0 * (dp[m][n][2 * up] - two.y), d1 = p1 * (dp[m][n][2 * up + 1] - two.w);
          if (!free) {
            const int j = key + 16 * m + 8 * up + lane / 4;
            bool keep0 = j >= seen.x && j < seen.y, keep1 = j >= seen.z && j < seen.w;
            if (key_.part->masked != 0) {
              constexpr int kBits = Shape::kMaskBits;
              const std::uint32_t word =
                  std::uint32_t{mask()[j * (Shape::kQueries / kBits) + q / kBits]} >> (q % kBits);
              keep0 = keep0 && (word & 1) != 0, keep1 = keep1 && (word & 2) != 0;
            }
            if (!keep0) p0 = d0 = 0;
            if (!keep1) p1 = d1 = 0;
          }
          p[m][2 * n + up] = packed<A>(p0, p1);
          ds[m][2 * n + up] = packed<A>(d0, d1);
        }
    }
  }

  // dS^T, rows of keys.
  __device__ __forceinline__ void store_ds(int first, int key, const std::uint32_t (&ds)[kMs][4]) {
    const int lane = static_cast<int>(threadIdx.x & 31);
#pragma unroll
    for (int m = 0; m < kMs; ++m)
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        const int row = key + 16 * m + 8 * (e % 2) + lane / 4, piece = first / 8 + e / 2;
        *reinterpret_cast<std::uint32_t*>(at_ + Shape::kDs + piece_at<Shape::kQueries>(row, piece) +
                                          lane % 4 * 4) = ds[m][e];
      }
  }

  // dQ of a query tile: the sum over this block's keys, and over those of the blocks before.
  __device__ __forceinline__ void queries_of_keys(int stage, const QueryTiles& now,
                                                  std::int32_t before, std::int32_t behind) {
    constexpr int kQms = Shape::kQueryMs, kNs = Shape::kDqColumns / 8;
    const QueryRows<Shape::kQueries>& rows = rows_of(stage);
    const int first = warp() % Shape::kQueryWarps * 16 * kQms,
              column = warp() / Shape::kQueryWarps * Shape::kDqColumns;
    const MatrixLane lane = lane_of_b();
    float4* const partial =
        reinterpret_cast<float4*>(a_.queries + static_cast<std::int64_t>(now.shared) *
                                                   Shape::kQueries * Shape::kQk) +
        threadIdx.x;
    float sum[kQms][kNs][4] = {};
    // Asked for before the products where there are registers to wait in.
    constexpr bool kEarly = Shape::kRegisters >= 160;
    float4 old[kEarly ? kQms * kNs : 1];
    if (kEarly && before > 0) {
#pragma unroll
      for (int f = 0; f < kQms * kNs; ++f) old[f] = __ldcg(partial + f * Shape::kThreads);
    }
    // Keys that some row of the warp's sees; the others have no dS.
    KeyRange any{Shape::kKeys, 0}, mine[kQms];
#pragma unroll
    for (int m = 0; m < kQms; ++m) {
      const int4 sixteen = rows.of_sixteen[first / 16 + m];
      mine[m] = {sixteen.x / Shape::kWarpKeys * Shape::kWarpKeys,
                 (sixteen.y + Shape::kWarpKeys - 1) / Shape::kWarpKeys * Shape::kWarpKeys};
      any = {smaller(any.begin, mine[m].begin), larger(any.end, mine[m].end)};
    }
#pragma unroll 4
    for (int key = any.begin; key < any.end; key += 16) {
      std::uint32_t ds[kQms][4];
#pragma unroll
      for (int m = 0; m < kQms; ++m) {
        load_matrices_transposed(
            ds[m], shared_ + Shape::kDs +
                       piece_at<Shape::kQueries>(key + lane.row, first / 8 + 2 * m + lane.piece));
        const bool seen = key >= mine[m].begin && key < mine[m].end;
#pragma unroll
        for (int e = 0; e < 4; ++e) ds[m][e] = seen ? ds[m][e] : 0;
      }
      accumulate<A, kQms, kNs, Shape::kQk>(sum, ds, shared_, key, column / 8);
    }
    if (before > 0) {
#pragma unroll
      for (int f = 0; f < kQms * kNs; ++f) {
        float(&to)[4] = sum[f / kNs][f % kNs];
        const float4 x = kEarly ? old[f] : __ldcg(partial + f * Shape::kThreads);
        to[0] += x.x, to[1] += x.y, to[2] += x.z, to[3] += x.w;
      }
    }
    if (behind > 0) {
#pragma unroll
      for (int f = 0; f < kQms * kNs; ++f) {
        const float(&x)[4] = sum[f / kNs][f % kNs];
        __stcg(partial + f * Shape::kThreads, float4{x[0], x[1], x[2], x[3]});
      }
      return;
    }
    const std::int64_t i0 = query(*key_.part, now.lane, now.step),
                       stride = query(*key_.part, now.lane, now.step + 1) - i0;
    A* const dq = base(a_.dq);
    with_write(a_.whole_pieces != 0, a_.stores != 0, [&]<Write kWrite>() {
#pragma unroll
      for (int m = 0; m < kQms; ++m)
        write_fragment<kWrite, kNs, A>(
            sum[m], a_.scale, column, static_cast<int>(a_.dq.width), a_.stores != 0,
            [&](int r) -> A* {
              const int n = first + 16 * m + r;
              return n < now.count ? dq + (i0 + n * stride) * a_.dq.row_stride : nullptr;
            });
    });
  }

  // dK and dV.
  __device__ __forceinline__ void finish() {
    if (a_.walk.geometry.splits > 1) {
      finish_split();
      return;
    }
    with_write(a_.whole_pieces != 0, a_.stores != 0, [&]<Write kWrite>() {
      const auto write = [&](const auto& sums, const Heads<A>& x, float scale) {
        A* const to = base(x);
        constexpr int kNs = sizeof(sums[0]) / sizeof(sums[0][0]);
#pragma unroll
        for (int m = 0; m < kMs; ++m)
          write_fragment<kWrite, kNs, A>(
              sums[m], scale, half() * kNs * 8, static_cast<int>(x.width), a_.stores != 0,
              [&](int r) -> A* {
                const std::int32_t j = key_positions()[first_key() + 16 * m + r];
                return j < 0 ? nullptr : to + j * x.row_stride;
              });
      };
      write(dv_, a_.dv, 1.0f);
      write(dk_, a_.dk, a_.scale);
    });
  }

  __device__ __forceinline__ void finish_split() {
    const int lane = static_cast<int>(threadIdx.x & 31);
    float* const to =
        a_.keys + static_cast<std::int64_t>(blockIdx.x) * Shape::kKeys * (Shape::kQk + Shape::kV);
    const auto write = [&](const auto& sums, int width, int start, float scale) {
      constexpr int kNs = sizeof(sums[0]) / sizeof(sums[0][0]);
#pragma unroll
      for (int m = 0; m < kMs; ++m)
#pragma unroll
        for (int n = 0; n < kNs; ++n)
#pragma unroll
          for (int up = 0; up < 2; ++up) {
            const int row = first_key() + 16 * m + 8 * up + lane / 4;
            const int column = (half() * kNs + n) * 8 + lane % 4 * 2;
            *reinterpret_cast<float2*>(to + start + row * width + column) = {
                sums[m][n][2 * up] * scale, sums[m][n][2 * up + 1] * scale};
          }
    };
    write(dk_, Shape::kQk, 0, a_.scale);
    write(dv_, Shape::kV, Shape::kKeys * Shape::kQk, 1.0f);
  }

  const BackwardArguments<A>& a_;
  char* const at_;
  const std::uint32_t shared_;
  const KeyTile key_;
  QueryTiles tiles_;
  float dk_[kMs][kKeyNs][4] = {}, dv_[kMs][kValueNs][4] = {};
  std::uint32_t k_[Shape::kHoldKeys ? kMs : 1][Shape::kQk / 16][4],
      v_[Shape::kHoldKeys ? kMs : 1][Shape::kV / 16][4];
};

template <class A, class Shape>
__global__ void __launch_bounds__(Shape::kThreads, Shape::kBlocks)
    attention_backward_mma(const __grid_constant__ BackwardArguments<A> arguments) {
  extern __shared__ __align__(128) char shared[];
  BackwardBlock<A, Shape>(arguments, shared).run();
}

}  // namespace longstride::ops::cuda
