// Attention backward on tensor cores (m16n8k16), bf16 and fp16, any width up to the tile's.
//
//   S^T = K Q^T    P^T = 2^{scale log2 e S^T - L log2 e}    dP^T = V dO^T    dS^T = P^T (dP^T - D)
//   dV += P^T dO   dK += dS^T Q   (scaled once, at the end)  dQ = dS K
//
// A warp owns 16 or 32 keys and all queries of a tile, so P^T and dS^T come out of their products
// as the operands that dV and dK need: only dS goes through shared memory, for dQ. Pairs of 16
// queries and a warp's keys that are not seen are skipped. K and V stay, Q and dO have two stages.
//
// work    2 (3 d_qk + 2 d_v) flops a pair      bytes   q, k, v, dout, dq, dk, dv once (columns,
// rows) bound   memory for local, column and row; the tensor cores for dense and summaries
#pragma once

#include <type_traits>

#include "ops/attention/attention_backward_walk.cuh"
#include "ops/attention/mma.cuh"

namespace longstride::ops::cuda {

// kHalves: warps that own the same keys, each with that share of the columns of dK and dV.
template <int kQkWidth, int kVWidth, int kSixteens, int kWarps_, int kQueries_, int kHalves_,
          int kBlocks_, bool kHoldKeys_>
struct BackwardShape {
  static constexpr int kQk = kQkWidth, kV = kVWidth, kWarps = kWarps_, kThreads = 32 * kWarps,
                       kQueries = kQueries_, kHalves = kHalves_, kBlocks = kBlocks_,
                       kMs = kSixteens, kWarpKeys = 16 * kMs, kKeys = kWarps / kHalves * kWarpKeys;
  static constexpr bool kHoldKeys = kHoldKeys_;
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
                       kDs = kStages + 2 * kStageBytes, kMask = kDs + kDsBytes,
                       kRows = kMask + kMaskBytes,
                       kRowsBytes = (static_cast<int>(sizeof(QueryRows<kQueries>)) + 15) / 16 * 16,
                       kPositions = kRows + 2 * kRowsBytes, kBytes = kPositions + 4 * kKeys;
};

// Rows of `width` values into shared memory, kWidth wide, zeros behind `width` and where there is
// no row. offset(r): of row r from `from` in elements, or -1.
template <int kWidth, int kThreads, class A, class Offset>
__device__ __forceinline__ void load_rows(const A* from, std::int64_t width, bool whole_pieces,
                                          int rows, std::uint32_t to, char* to_generic,
                                          const Offset& offset) {
  constexpr int kPieces = kWidth / 8;
  for (int n = static_cast<int>(threadIdx.x); n < rows * kPieces; n += kThreads) {
    const int r = n / kPieces, p = n % kPieces;
    const std::int64_t at = offset(r);
    const bool valid = at >= 0 && p * 8 < width;
    if (whole_pieces) {
      copy16(to + piece_at<kWidth>(r, p), valid ? from + at + p * 8 : from, valid);
      continue;
    }
    device::Pack<A, 8> piece;
#pragma unroll
    for (int e = 0; e < 8; ++e)
      piece.at[e] = valid && p * 8 + e < width ? from[at + p * 8 + e] : device::from_float<A>(0);
    device::store(reinterpret_cast<A*>(to_generic + piece_at<kWidth>(r, p)), piece);
  }
}

// w[n] of lane c becomes w[c] of lane n, in each four lanes.
__device__ __forceinline__ void transpose_four(std::uint32_t (&w)[4]) {
  const bool odd = (threadIdx.x & 1) != 0, high = (threadIdx.x & 2) != 0;
  std::uint32_t x = __shfl_xor_sync(0xffffffffu, odd ? w[0] : w[1], 1),
                y = __shfl_xor_sync(0xffffffffu, odd ? w[2] : w[3], 1);
  const std::uint32_t a0 = odd ? x : w[0], a1 = odd ? w[1] : x, b0 = odd ? y : w[2],
                      b1 = odd ? w[3] : y;
  x = __shfl_xor_sync(0xffffffffu, high ? a0 : b0, 2);
  y = __shfl_xor_sync(0xffffffffu, high ? a1 : b1, 2);
  w[0] = high ? x : a0, w[1] = high ? y : a1, w[2] = high ? b0 : x, w[3] = high ? b1 : y;
}

// Four pieces of eight columns; lane c of four holds columns 2c and 2c + 1 of each and writes the
// whole piece c: to `to` (or nowhere: nullptr), of which `columns` exist.
template <class A>
__device__ __forceinline__ void write_pieces(const float (&v)[4][2], A* to, int columns, bool add,
                                             bool whole_pieces) {
  std::uint32_t w[4] = {};
  const bool any = to != nullptr && columns > 0;
  device::Pack<A, 8> piece;
  if (add) {
    if (any && whole_pieces) {
      const uint4 old = *reinterpret_cast<const uint4*>(to);
      w[0] = old.x, w[1] = old.y, w[2] = old.z, w[3] = old.w;
    } else if (any) {
#pragma unroll
      for (int e = 0; e < 8; ++e) piece.at[e] = e < columns ? to[e] : device::from_float<A>(0);
      const auto& words = reinterpret_cast<const std::uint32_t(&)[4]>(piece);
#pragma unroll
      for (int n = 0; n < 4; ++n) w[n] = words[n];
    }
    transpose_four(w);
  }
#pragma unroll
  for (int n = 0; n < 4; ++n) {
    const float2 old = add ? unpacked<A>(w[n]) : float2{0, 0};
    w[n] = packed<A>(v[n][0] + old.x, v[n][1] + old.y);
  }
  transpose_four(w);
  if (!any) return;
  if (whole_pieces) {
    *reinterpret_cast<uint4*>(to) = {w[0], w[1], w[2], w[3]};
    return;
  }
#pragma unroll
  for (int n = 0; n < 4; ++n) reinterpret_cast<std::uint32_t(&)[4]>(piece)[n] = w[n];
#pragma unroll
  for (int e = 0; e < 8; ++e)
    if (e < columns) to[e] = piece.at[e];
}

// A fragment of 16 rows x 8 kNs columns, times scale; row(r): where row r in [0, 16) of the
// fragment begins in memory, or nullptr; first: its first column, of `width`.
template <int kNs, class A, class Row>
__device__ __forceinline__ void write_fragment(const float (&c)[kNs][4], float scale, int first,
                                               int width, bool add, bool whole_pieces,
                                               const Row& row) {
  const int lane = static_cast<int>(threadIdx.x & 31), g = lane / 4, mine = lane % 4;
  static_assert(kNs % 2 == 0);
  if constexpr (kNs % 4 == 0) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      A* const to = row(g + 8 * half);
#pragma unroll
      for (int n = 0; n < kNs; n += 4) {
        float v[4][2];
#pragma unroll
        for (int m = 0; m < 4; ++m)
          v[m][0] = c[n + m][2 * half] * scale, v[m][1] = c[n + m][2 * half + 1] * scale;
        const int column = first + 8 * (n + mine);
        write_pieces<A>(v, to == nullptr ? nullptr : to + column, width - column, add,
                        whole_pieces);
      }
    }
  } else {
#pragma unroll
    for (int n = 0; n < kNs; n += 2) {
      float v[4][2];
#pragma unroll
      for (int m = 0; m < 4; ++m)
        v[m][0] = c[n + m % 2][m / 2 * 2] * scale, v[m][1] = c[n + m % 2][m / 2 * 2 + 1] * scale;
      A* const to = row(g + 8 * (mine / 2));
      const int column = first + 8 * (n + mine % 2);
      write_pieces<A>(v, to == nullptr ? nullptr : to + column, width - column, add, whole_pieces);
    }
  }
}

// Where lane l finds its row of four 8 x 8 matrices: A fragments lie rows first (or, transposed,
// columns first), B fragments of 16 columns likewise.
struct MatrixLane {
  int row, piece;
};
__device__ __forceinline__ MatrixLane lane_of_a() {
  const int l = static_cast<int>(threadIdx.x & 31);
  return {(l / 8 % 2) * 8 + l % 8, l / 16};
}
__device__ __forceinline__ MatrixLane lane_of_b() {
  const int l = static_cast<int>(threadIdx.x & 31);
  return {l / 16 * 8 + l % 8, l / 8 % 2};
}

// s[m] += a[m] b^T over a depth of kDepth: a from `held` or from shared memory at a_at (rows of
// a_width, the warp's first is row a_row), b from shared memory, 16 rows from b_row.
template <class A, int kMs, int kDepth, bool kHeld>
__device__ __forceinline__ void scores(float (&s)[kMs][2][4],
                                       const std::uint32_t (*held)[kDepth / 16][4],
                                       std::uint32_t a_at, int a_row, std::uint32_t b_at,
                                       int b_row) {
  const MatrixLane la = lane_of_a(), lb = lane_of_b();
#pragma unroll
  for (int d = 0; d < kDepth / 16; ++d) {
    std::uint32_t b[4];
    load_matrices(b, b_at + piece_at<kDepth>(b_row + lb.row, 2 * d + lb.piece));
#pragma unroll
    for (int m = 0; m < kMs; ++m) {
      std::uint32_t a[4];
      if constexpr (kHeld) {
#pragma unroll
        for (int e = 0; e < 4; ++e) a[e] = held[m][d][e];
      } else {
        load_matrices(a, a_at + piece_at<kDepth>(a_row + 16 * m + la.row, 2 * d + la.piece));
      }
      multiply_add<A>(s[m][0], a, b[0], b[1]);
      multiply_add<A>(s[m][1], a, b[2], b[3]);
    }
  }
}

// sum[m] += a[m] b: a 16 x 16, b 16 rows from b_row of kWidth columns, of them 8 kNs from piece
// `first`.
template <class A, int kMs, int kNs, int kWidth>
__device__ __forceinline__ void accumulate(float (&sum)[kMs][kNs][4],
                                           const std::uint32_t (&a)[kMs][4], std::uint32_t b_at,
                                           int b_row, int first) {
  const MatrixLane lane = lane_of_a();  // transposed: the roles of row and column are exchanged
#pragma unroll
  for (int n = 0; n < kNs; n += 2) {
    std::uint32_t b[4];
    load_matrices_transposed(b, b_at + piece_at<kWidth>(b_row + lane.row, first + n + lane.piece));
#pragma unroll
    for (int m = 0; m < kMs; ++m) {
      multiply_add<A>(sum[m][n], a[m], b[0], b[1]);
      multiply_add<A>(sum[m][n + 1], a[m], b[2], b[3]);
    }
  }
}

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
      if (more) load_queries(stage ^ 1);
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
      stage ^= 1;
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
      load_rows<kWidth, Shape::kThreads>(base(x), x.width, a_.whole_pieces != 0, Shape::kKeys,
                                         shared_ + to, at_ + to, [&](int r) {
                                           const std::int64_t i = key_positions()[r];
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
      load_rows<kWidth, Shape::kThreads>(
          base(x), x.width, a_.whole_pieces != 0, Shape::kQueries, shared_ + to, at_ + to,
          [&](int r) {
            return r < count ? static_cast<std::int64_t>(first + r * stride) * x.row_stride : -1;
          });
    };
    const int to = Shape::kStages + stage * Shape::kStageBytes;
    load.template operator()<Shape::kQk>(a_.q, to);
    load.template operator()<Shape::kV>(a_.dout, to + Shape::kQBytes);
    const auto r = static_cast<std::int32_t>(threadIdx.x);
    if (r >= larger(32, Shape::kQueries)) return;
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
      scores<A, kMs, Shape::kQk, Shape::kHoldKeys>(s, k_, shared_, key, q_at(stage), 16 * c);
      scores<A, kMs, Shape::kV, Shape::kHoldKeys>(dp, v_, shared_ + Shape::kV0, key, dout_at(stage),
                                                  16 * c);
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
    float sum[kQms][kNs][4] = {};
    int4 sixteen[kQms];
#pragma unroll
    for (int m = 0; m < kQms; ++m) sixteen[m] = rows.of_sixteen[first / 16 + m];
#pragma unroll 1
    for (int warp_key = 0; warp_key < Shape::kKeys; warp_key += Shape::kWarpKeys) {
      bool seen[kQms], any = false;
#pragma unroll
      for (int m = 0; m < kQms; ++m) {
        seen[m] = sees(sixteen[m], warp_key, Shape::kWarpKeys);
        any = any || seen[m];
      }
      if (!any) continue;
#pragma unroll
      for (int key = 0; key < Shape::kWarpKeys; key += 16) {
        std::uint32_t ds[kQms][4];
#pragma unroll
        for (int m = 0; m < kQms; ++m) {
          load_matrices_transposed(ds[m],
                                   shared_ + Shape::kDs +
                                       piece_at<Shape::kQueries>(warp_key + key + lane.row,
                                                                 first / 8 + 2 * m + lane.piece));
#pragma unroll
          for (int e = 0; e < 4; ++e) ds[m][e] = seen[m] ? ds[m][e] : 0;
        }
        accumulate<A, kQms, kNs, Shape::kQk>(sum, ds, shared_, warp_key + key, column / 8);
      }
    }
    float4* const partial =
        reinterpret_cast<float4*>(a_.queries + static_cast<std::int64_t>(now.shared) *
                                                   Shape::kQueries * Shape::kQk) +
        threadIdx.x;
    if (before > 0) {
#pragma unroll
      for (int f = 0; f < kQms * kNs; ++f) {
        const float4 old = __ldcg(partial + f * Shape::kThreads);
        float(&to)[4] = sum[f / kNs][f % kNs];
        to[0] += old.x, to[1] += old.y, to[2] += old.z, to[3] += old.w;
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
    const std::int32_t i0 = query(*key_.part, now.lane, now.step),
                       stride = query(*key_.part, now.lane, now.step + 1) - i0;
    A* const dq = base(a_.dq);
#pragma unroll
    for (int m = 0; m < kQms; ++m)
      write_fragment<kNs, A>(sum[m], a_.scale, column, static_cast<int>(a_.dq.width),
                             a_.stores == 0, a_.whole_pieces != 0, [&](int r) -> A* {
                               const int n = first + 16 * m + r;
                               return n < now.count
                                          ? dq + static_cast<std::int64_t>(i0 + n * stride) *
                                                     a_.dq.row_stride
                                          : nullptr;
                             });
  }

  // dK and dV.
  __device__ __forceinline__ void finish() {
    if (a_.walk.geometry.splits > 1) {
      finish_split();
      return;
    }
    const auto write = [&](const auto& sums, const Heads<A>& x, float scale) {
      A* const to = base(x);
      constexpr int kNs = sizeof(sums[0]) / sizeof(sums[0][0]);
#pragma unroll
      for (int m = 0; m < kMs; ++m)
        write_fragment<kNs, A>(sums[m], scale, half() * kNs * 8, static_cast<int>(x.width),
                               a_.stores == 0, a_.whole_pieces != 0, [&](int r) -> A* {
                                 const std::int64_t j = key_positions()[first_key() + 16 * m + r];
                                 return j < 0 ? nullptr : to + j * x.row_stride;
                               });
    };
    write(dv_, a_.dv, 1.0f);
    write(dk_, a_.dk, a_.scale);
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
