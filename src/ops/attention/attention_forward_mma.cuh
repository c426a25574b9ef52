// Attention forward on tensor cores (sm_80 and later), one pass of one head and query tile a block.
//
//   S = scale Q K^T   m = max S   P = e^{S - m}   O = P V / sum P   L = m + log sum P
//
// over the tile's keys in turn, m, sum P and O in registers, rescaled when m rises (online
// softmax); a later pass of a union merges (O, L) of the earlier ones as it stores. Rows of Q, K
// and V are fetched from where they are, 16 bytes a copy, whatever the part: a column's rows lie
// far apart.
//
// Work: 2 (d_qk + d_v) FLOPs a pair; least bytes: Q, K, V once, O once. Bound by memory where a
// query sees few hundred keys (local, column, row), else by the tensor cores, whose mma.sync gives
// about 60 % of what wgmma does on Hopper. Masked pairs cost nothing but the arithmetic of the
// tile. A NaN in a key or value can reach the other rows of a tile that sees it: P is 0 there, not
// absent.
#pragma once

#include "ops/attention/attention_forward_walk.cuh"
#include "ops/attention/mma.cuh"

namespace longstride::ops::cuda {

// kWarps warps with kBlocks x 16 queries each; kKeys keys at a time, kStages of them in flight.
template <int kQk_, int kV_, int kBlocks_, int kWarps_, int kKeys_, int kStages_, int kMinBlocks_>
struct ForwardShape {
  static constexpr int kQk = kQk_, kV = kV_, kBlocks = kBlocks_, kWarps = kWarps_, kKeys = kKeys_;
  static constexpr int kStages = kStages_, kMinBlocks = kMinBlocks_;
  static constexpr int kThreads = kWarps * 32, kWarpRows = kBlocks * 16;
  static constexpr int kRows = kWarps * kWarpRows;
  static constexpr bool kKeepsQ = kQk * kBlocks <= 128;  // Q in registers; else read every time
  static constexpr int kSlots = kStages + 1;
  // Shared memory: Q and later O, warp by warp; stages of K and V; masks; the walk.
  static constexpr int kWarpBytes = kWarpRows * (kQk > kV ? kQk : kV) * 2;
  static constexpr int kStageBytes = kKeys * (kQk + kV) * 2;
  static constexpr int kMaskBytes = kRows * kKeys / 8;
  static constexpr int kStagesAt = kWarps * kWarpBytes;
  static constexpr int kMaskAt = kStagesAt + kStages * kStageBytes;
  static constexpr int kWalkAt = kMaskAt + kMaskBytes;
  using Walk = KeyWalk<kKeys, kSlots>;
  static constexpr int kBytes = kWalkAt + static_cast<int>(sizeof(Walk));
  static_assert(kBytes <= 99 * 1024, "what a block has on every card since sm_80");
  static_assert(kStages >= 2 && kKeys % 32 == 0);
};

// Copies piece `p` (8 values) of a row of `width` values; zeros beyond it, or where not `valid`.
template <class A>
__device__ __forceinline__ void copy_piece(char* shared, std::uint32_t at, const A* row, int p,
                                           std::int64_t width, bool valid, bool whole) {
  if (whole) {
    const bool inside = valid && p * 8 < width;
    copy16(shared_address(shared) + at, inside ? row + p * 8 : row, inside);
    return;
  }
  A* const to = reinterpret_cast<A*>(shared + at);
  for (int e = 0; e < 8; ++e) to[e] = valid && p * 8 + e < width ? row[p * 8 + e] : A();
}

// A tile of kRows rows; position(r) is the row's, or negative: zeros.
template <int kWidth, int kRows, int kThreads, class A, class Position, class Place>
__device__ __forceinline__ void copy_rows(char* shared, const A* head, std::int64_t row_stride,
                                          std::int64_t width, bool whole, const Position& position,
                                          const Place& place) {
  constexpr int kPieces = kWidth / 8, kAll = kRows * kPieces;
#pragma unroll
  for (int n = 0; n < (kAll + kThreads - 1) / kThreads; ++n) {
    const int at = static_cast<int>(threadIdx.x) + n * kThreads;
    if (kAll % kThreads != 0 && at >= kAll) break;
    const int r = at / kPieces, p = at % kPieces;
    const std::int32_t i = position(r);
    const A* const row = head + (i < 0 ? 0 : i) * row_stride;
    copy_piece(shared, place(r, p), row, p, width, i >= 0, whole);
  }
}

// The state of a warp's rows; a thread has rows g and g + 8 of each block of 16 (mma.cuh).
template <class Shape>
struct ForwardRows {
  static constexpr int kBlocks = Shape::kBlocks;
  float out[kBlocks][Shape::kV / 8][4];
  float max[kBlocks][2], sum[kBlocks][2];
  // Key indices of the current range: those that the row sees, that any and that all rows see.
  std::int32_t from[kBlocks][2], count[kBlocks][2];
  std::int32_t any_from, any_to, all_from, all_to;

  __device__ __forceinline__ void clear() {
#pragma unroll
    for (int b = 0; b < kBlocks; ++b) {
#pragma unroll
      for (int n = 0; n < Shape::kV / 8; ++n)
        out[b][n][0] = out[b][n][1] = out[b][n][2] = out[b][n][3] = 0;
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        max[b][h] = -INFINITY;
        sum[b][h] = 0;
        from[b][h] = count[b][h] = 0;
      }
    }
  }

  // row: of the tile, this thread's first.
  __device__ __forceinline__ void begin_range(const KeySlot& slot, const QueryTile& tile, int row) {
    std::int32_t least = kPositionLimit, most_from = 0, least_to = kPositionLimit, most = 0;
#pragma unroll
    for (int b = 0; b < kBlocks; ++b)
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        const int r = row + 16 * b + 8 * h;
        KeyRange seen;
        if (r < tile.count) seen = reach_in_lane(*slot.part, slot.lane, tile.position(r));
        from[b][h] = seen.begin;
        count[b][h] = seen.end - seen.begin;
        if (!seen.empty()) {
          least = smaller(least, seen.begin);
          most = larger(most, seen.end);
        }
        most_from = larger(most_from, seen.begin);
        least_to = smaller(least_to, seen.end);
      }
    any_from = __reduce_min_sync(0xffffffffu, least);
    any_to = __reduce_max_sync(0xffffffffu, most);
    all_from = __reduce_max_sync(0xffffffffu, most_from);
    all_to = __reduce_min_sync(0xffffffffu, least_to);
  }
};

template <class A, class Shape>
struct ForwardWarp {
  static constexpr int kBlocks = Shape::kBlocks, kKeyBlocks = Shape::kKeys / 8;
  static constexpr int kQkSteps = Shape::kQk / 16, kQkKept = Shape::kKeepsQ ? kQkSteps : 1;

  char* queries;  // shared memory: the warp's rows of Q
  std::uint32_t q[kBlocks][kQkKept][4];
  std::uint32_t sign;  // flips that of Q where the scale is negative
  float scale_log2;    // |scale| log2(e)
  ForwardRows<Shape> rows;
  float s[kBlocks][kKeyBlocks][4];

  __device__ __forceinline__ void load_q(std::uint32_t (&to)[4], int b, int k) {
    const int lane = static_cast<int>(threadIdx.x & 31);
    load_matrices(to, shared_address(queries) +
                          piece_at<Shape::kQk>(b * 16 + (lane & 15), 2 * k + (lane >> 4)));
#pragma unroll
    for (std::uint32_t& x : to) x ^= sign;
  }

  __device__ __forceinline__ void keep_q() {
    if constexpr (Shape::kKeepsQ) {
#pragma unroll
      for (int b = 0; b < kBlocks; ++b)
#pragma unroll
        for (int k = 0; k < kQkSteps; ++k) load_q(q[b][k], b, k);
    }
  }

  // s = Q K^T
  __device__ __forceinline__ void scores(const char* keys) {
    const int lane = static_cast<int>(threadIdx.x & 31);
    const int key_row = (lane >> 4) * 8 + (lane & 7), key_piece = lane >> 3 & 1;
#pragma unroll
    for (int b = 0; b < kBlocks; ++b)
#pragma unroll
      for (int n = 0; n < kKeyBlocks; ++n) s[b][n][0] = s[b][n][1] = s[b][n][2] = s[b][n][3] = 0;
#pragma unroll
    for (int k = 0; k < kQkSteps; ++k) {
      if constexpr (!Shape::kKeepsQ) {
#pragma unroll
        for (int b = 0; b < kBlocks; ++b) load_q(q[b][0], b, k);
      }
#pragma unroll
      for (int n = 0; n < kKeyBlocks; n += 2) {
        std::uint32_t b4[4];
        load_matrices(
            b4, shared_address(keys) + piece_at<Shape::kQk>(n * 8 + key_row, 2 * k + key_piece));
#pragma unroll
        for (int b = 0; b < kBlocks; ++b) {
          const auto& a = q[b][Shape::kKeepsQ ? k : 0];
          multiply_add<A>(s[b][n], a, b4[0], b4[1]);
          multiply_add<A>(s[b][n + 1], a, b4[2], b4[3]);
        }
      }
    }
  }

  // -inf for pairs that are not kept. first: key index of the tile's first key.
  __device__ __forceinline__ void mask_range(std::int32_t first) {
    const int column = 2 * static_cast<int>(threadIdx.x & 3);
#pragma unroll
    for (int b = 0; b < kBlocks; ++b)
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        const std::int32_t before = rows.from[b][h] - first - column;
        const auto count = static_cast<std::uint32_t>(rows.count[b][h]);
#pragma unroll
        for (int n = 0; n < kKeyBlocks; ++n)
#pragma unroll
          for (int e = 0; e < 2; ++e)
            if (static_cast<std::uint32_t>(n * 8 + e - before) >= count)
              s[b][n][2 * h + e] = -INFINITY;
      }
  }

  __device__ __forceinline__ void mask_pairs(const std::uint32_t* words) {
    const int g = static_cast<int>(threadIdx.x & 31) >> 2;
    const int column = 2 * static_cast<int>(threadIdx.x & 3);
#pragma unroll
    for (int b = 0; b < kBlocks; ++b)
#pragma unroll
      for (int h = 0; h < 2; ++h)
#pragma unroll
        for (int w = 0; w < Shape::kKeys / 32; ++w) {
          const std::uint32_t word =
              words[(b * 16 + h * 8 + g) * (Shape::kKeys / 32) + w] >> column;
#pragma unroll
          for (int n = 0; n < 4; ++n)
#pragma unroll
            for (int e = 0; e < 2; ++e)
              if ((word >> (n * 8 + e) & 1) == 0) s[b][w * 4 + n][2 * h + e] = -INFINITY;
        }
  }

  // s becomes P; max, sum and out are brought up to date.
  __device__ __forceinline__ void soften() {
#pragma unroll
    for (int b = 0; b < kBlocks; ++b)
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        float top = rows.max[b][h];
#pragma unroll
        for (int n = 0; n < kKeyBlocks; ++n)
          top = fmaxf(top, fmaxf(s[b][n][2 * h], s[b][n][2 * h + 1]));
        top = fmaxf(top, __shfl_xor_sync(0xffffffffu, top, 1));
        top = fmaxf(top, __shfl_xor_sync(0xffffffffu, top, 2));
        const float base = top == -INFINITY ? 0 : top * scale_log2;
        const float shrink = fast_exp2(rows.max[b][h] * scale_log2 - base);
        rows.max[b][h] = top;
        float sum = 0;
#pragma unroll
        for (int n = 0; n < kKeyBlocks; ++n)
#pragma unroll
          for (int e = 0; e < 2; ++e) {
            const float p = fast_exp2(fmaf(s[b][n][2 * h + e], scale_log2, -base));
            s[b][n][2 * h + e] = p;
            sum += p;
          }
        rows.sum[b][h] = fmaf(rows.sum[b][h], shrink, sum);
#pragma unroll
        for (int n = 0; n < Shape::kV / 8; ++n) {
          rows.out[b][n][2 * h] *= shrink;
          rows.out[b][n][2 * h + 1] *= shrink;
        }
      }
  }

  // out += P V
  __device__ __forceinline__ void absorb(const char* values) {
    const int lane = static_cast<int>(threadIdx.x & 31);
#pragma unroll
    for (int j = 0; j < kKeyBlocks / 2; ++j) {
      std::uint32_t p[kBlocks][4];
#pragma unroll
      for (int b = 0; b < kBlocks; ++b) {
        p[b][0] = packed<A>(s[b][2 * j][0], s[b][2 * j][1]);
        p[b][1] = packed<A>(s[b][2 * j][2], s[b][2 * j][3]);
        p[b][2] = packed<A>(s[b][2 * j + 1][0], s[b][2 * j + 1][1]);
        p[b][3] = packed<A>(s[b][2 * j + 1][2], s[b][2 * j + 1][3]);
      }
#pragma unroll
      for (int n = 0; n < Shape::kV / 8; n += 2) {
        std::uint32_t v[4];
        load_matrices_transposed(
            v, shared_address(values) + piece_at<Shape::kV>(j * 16 + (lane & 15), n + (lane >> 4)));
#pragma unroll
        for (int b = 0; b < kBlocks; ++b) {
          multiply_add<A>(rows.out[b][n], p[b], v[0], v[1]);
          multiply_add<A>(rows.out[b][n + 1], p[b], v[2], v[3]);
        }
      }
    }
  }
};

// Two neighbouring values of a row that may end in between.
template <class A>
__device__ __forceinline__ float2 load_two(const A* from, int column, std::int64_t width,
                                           bool whole) {
  if (whole)
    return column < width ? unpacked<A>(*reinterpret_cast<const std::uint32_t*>(from + column))
                          : float2{0, 0};
  return {column < width ? device::to_float(from[column]) : 0.0f,
          column + 1 < width ? device::to_float(from[column + 1]) : 0.0f};
}

// O and L of the warp's rows; `first`: the warp's first row of the tile.
template <class A, class Shape>
__device__ __forceinline__ void store_rows(const ForwardArguments<A>& a, const QueryTile& tile,
                                           ForwardWarp<A, Shape>& warp, int first) {
  const int lane = static_cast<int>(threadIdx.x & 31), g = lane >> 2, c = lane & 3;
  const std::int64_t h = tile.pass.head;
  float* const lse = a.lse + (tile.batch * a.q.heads + h) * a.length;
  const bool whole = a.whole_pieces != 0;
#pragma unroll
  for (int b = 0; b < Shape::kBlocks; ++b)
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int r = first + 16 * b + 8 * half + g;
      const bool valid = r < tile.count;
      const std::int64_t i = valid ? tile.position(r) : 0;
      float sum = warp.rows.sum[b][half];
      sum += __shfl_xor_sync(0xffffffffu, sum, 1);
      sum += __shfl_xor_sync(0xffffffffu, sum, 2);
      const bool merges = tile.pass.merges != 0 && valid;
      const RowEnd end(warp.rows.max[b][half] * (warp.scale_log2 * 0.693147180559945f), sum,
                       merges ? lse[i] : -INFINITY);
      __syncwarp();
      if (valid && c == 0) lse[i] = end.lse;
#pragma unroll
      for (int n = 0; n < Shape::kV / 8; ++n) {
        float2 x = {warp.rows.out[b][n][2 * half] * end.here,
                    warp.rows.out[b][n][2 * half + 1] * end.here};
        if (end.before != 0) {
          const float2 old =
              load_two<A>(row_of(a.out, tile.batch, i, h), n * 8 + 2 * c, a.out.width, whole);
          x.x = fmaf(end.before, old.x, x.x);
          x.y = fmaf(end.before, old.y, x.y);
        }
        *reinterpret_cast<std::uint32_t*>(warp.queries +
                                          piece_at<Shape::kV>(16 * b + 8 * half + g, n) + 4 * c) =
            packed<A>(x.x, x.y);
      }
    }
  __syncwarp();
  constexpr int kPieces = Shape::kV / 8;
#pragma unroll 4
  for (int at = lane; at < Shape::kWarpRows * kPieces; at += 32) {
    const int r = at / kPieces, p = at % kPieces;
    if (first + r >= tile.count || p * 8 >= a.out.width) continue;
    const char* const from = warp.queries + piece_at<Shape::kV>(r, p);
    A* const to = row_of(a.out, tile.batch, tile.position(first + r), h) + p * 8;
    if (whole) {
      *reinterpret_cast<uint4*>(to) = *reinterpret_cast<const uint4*>(from);
    } else {
      const A* const values = reinterpret_cast<const A*>(from);
      for (int e = 0; e < 8 && p * 8 + e < a.out.width; ++e) to[e] = values[e];
    }
  }
}

template <class A, class Shape>
__global__ void __launch_bounds__(Shape::kThreads, Shape::kMinBlocks)
    forward_mma(const __grid_constant__ ForwardArguments<A> a) {
  extern __shared__ __align__(128) char shared[];
  const QueryTile tile = query_tile(a, Shape::kRows);
  if (tile.count <= 0) return;
  const int warp_number = static_cast<int>(threadIdx.x >> 5);
  const int first = warp_number * Shape::kWarpRows;
  const bool whole = a.whole_pieces != 0;
  const std::int64_t h = tile.pass.head;
  auto& walk = *reinterpret_cast<typename Shape::Walk*>(shared + Shape::kWalkAt);

  copy_rows<Shape::kQk, Shape::kRows, Shape::kThreads>(
      shared, row_of(a.q, tile.batch, 0, h), a.q.row_stride, a.q.width, whole,
      [&](int r) { return r < tile.count ? tile.position(r) : -1; },
      [&](int r, int p) {
        return static_cast<std::uint32_t>(r / Shape::kWarpRows * Shape::kWarpBytes) +
               piece_at<Shape::kQk>(r % Shape::kWarpRows, p);
      });
  copies_commit();
  if (threadIdx.x == 0) {
    walk.begin(tile, a.parts);
    for (int n = 0; n < Shape::kStages; ++n) walk.write(n);
  }
  __syncthreads();
  if (walk.ring[0].part == nullptr && tile.pass.merges != 0) {
    copies_wait<0>();
    return;
  }

  const A* const k = row_of(a.k, tile.batch, 0, h);
  const A* const v = row_of(a.v, tile.batch, 0, h);
  const auto fetch = [&](int n) {
    const KeySlot& slot = walk.ring[n % Shape::kSlots];
    if (slot.part != nullptr) {
      char* const stage = shared + Shape::kStagesAt + n % Shape::kStages * Shape::kStageBytes;
      const auto position = [&](int r) {
        const std::int32_t t = slot.first + r;
        return t < slot.end ? slot.map.position(t) : -1;
      };
      copy_rows<Shape::kQk, Shape::kKeys, Shape::kThreads>(stage, k, a.k.row_stride, a.k.width,
                                                           whole, position, piece_at<Shape::kQk>);
      copy_rows<Shape::kV, Shape::kKeys, Shape::kThreads>(stage + Shape::kKeys * Shape::kQk * 2, v,
                                                          a.v.row_stride, a.v.width, whole,
                                                          position, piece_at<Shape::kV>);
    }
    copies_commit();
  };
  for (int n = 0; n < Shape::kStages - 1; ++n) fetch(n);

  ForwardWarp<A, Shape> warp;
  warp.queries = shared + warp_number * Shape::kWarpBytes;
  warp.sign = a.scale < 0 ? 0x80008000u : 0;
  warp.scale_log2 = fmaxf(fabsf(a.scale) * 1.44269504088896f, 1e-30f);
  warp.rows.clear();
  auto* const mask =
      reinterpret_cast<std::uint32_t*>(shared + Shape::kMaskAt) + first * (Shape::kKeys / 32);
  copies_wait<Shape::kStages - 1>();
  __syncthreads();
  warp.keep_q();

  std::int32_t range = -1;
  for (int n = 0;; ++n) {
    const KeySlot& slot = walk.ring[n % Shape::kSlots];
    if (slot.part == nullptr) break;
    copies_wait<Shape::kStages - 2>();
    __syncthreads();
    fetch(n + Shape::kStages - 1);
    if (threadIdx.x == 0) walk.write(n + Shape::kStages);
    __syncwarp();
    if (slot.range != range) {
      range = slot.range;
      warp.rows.begin_range(slot, tile, first + static_cast<int>(threadIdx.x & 31) / 4);
    }
    const std::int32_t t = slot.first;
    if (t >= warp.rows.any_to || t + Shape::kKeys <= warp.rows.any_from) continue;
    const char* const stage = shared + Shape::kStagesAt + n % Shape::kStages * Shape::kStageBytes;
    const bool masked = slot.part->masked != 0;
    if (masked) make_mask<Shape::kWarpRows, Shape::kKeys>(mask, slot, tile, first);
    warp.scores(stage);
    if (masked) {
      warp.mask_pairs(mask);
    } else if (t < warp.rows.all_from || t + Shape::kKeys > warp.rows.all_to) {
      warp.mask_range(t);
    }
    warp.soften();
    warp.absorb(stage + Shape::kKeys * Shape::kQk * 2);
  }
  copies_wait<0>();
  store_rows(a, tile, warp, first);
}

}  // namespace longstride::ops::cuda
