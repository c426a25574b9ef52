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

#include "ops/attention/attention_forward_ranges.cuh"

namespace longstride::ops::cuda {

// A tile of kRows rows of one head, `stride` bytes from one position to the next; position(r) is
// the row's, or negative: zeros, as beyond `width` values. place(r, p): where its piece p goes.
template <int kWidth, int kRows, int kThreads, bool kWhole, class A, class Position, class Place>
__device__ __forceinline__ void copy_rows(char* shared, const A* head, std::uint32_t stride,
                                          int width, const Position& position, const Place& place) {
  constexpr int kPieces = kWidth / 8, kAll = kRows * kPieces;
#pragma unroll
  for (int n = 0; n < (kAll + kThreads - 1) / kThreads; ++n) {
    const int at = static_cast<int>(threadIdx.x) + n * kThreads;
    if (kAll % kThreads != 0 && at >= kAll) break;
    const int r = at / kPieces, p = at % kPieces;
    const std::int32_t i = position(r);
    const auto row = static_cast<std::uint64_t>(static_cast<std::uint32_t>(larger(i, 0)));
    const A* const from =
        reinterpret_cast<const A*>(reinterpret_cast<const char*>(head) + row * stride);
    if constexpr (kWhole) {
      const bool inside = i >= 0 && p * 8 < width;
      copy16(shared_address(shared) + place(r, p), inside ? from + p * 8 : head, inside);
    } else {
      A* const to = reinterpret_cast<A*>(shared + place(r, p));
#pragma unroll 1
      for (int e = 0; e < 8; ++e) to[e] = i >= 0 && p * 8 + e < width ? from[p * 8 + e] : A();
    }
  }
}

// Pieces of 16 bytes of the warp's rows of O, between memory and the warp's shared rows.
template <bool kWhole, bool kLoads, class A, class Shape>
__device__ __forceinline__ void move_out(const ForwardArguments<A>& a, const QueryTile& tile,
                                         ForwardWarp<A, Shape>& warp, int first) {
  constexpr int kPieces = Shape::kV / 8;
  const int lane = static_cast<int>(threadIdx.x & 31), width = static_cast<int>(a.out.width);
  A* const head = row_of(a.out, tile.batch, 0, tile.pass.head);
#pragma unroll
  for (int n = 0; n < Shape::kWarpRows * kPieces / 32; ++n) {
    const int r = (n * 32 + lane) / kPieces, p = (n * 32 + lane) % kPieces;
    if (first + r >= tile.count || p * 8 >= width) continue;
    char* const shared = warp.queries + piece_at<Shape::kV>(r, p);
    A* const out = head + tile.position(first + r) * a.out.row_stride + p * 8;
    if constexpr (kWhole) {
      auto *const there = reinterpret_cast<uint4*>(out), *const here =
                                                             reinterpret_cast<uint4*>(shared);
      *(kLoads ? here : there) = *(kLoads ? there : here);
    } else {
      A* const here = reinterpret_cast<A*>(shared);
#pragma unroll 1
      for (int e = 0; e < smaller(8, width - p * 8); ++e)
        (kLoads ? here : out)[e] = (kLoads ? out : here)[e];
    }
  }
  __syncwarp();
}

// O and L of the warp's rows; `first`: the warp's first row of the tile.
template <bool kWhole, class A, class Shape>
__device__ __forceinline__ void store_rows(const ForwardArguments<A>& a, const QueryTile& tile,
                                           ForwardWarp<A, Shape>& warp, int first) {
  const int lane = static_cast<int>(threadIdx.x & 31), g = lane >> 2, c = lane & 3;
  const bool merges = tile.pass.merges != 0;
  float* const lse = a.lse + (tile.batch * a.q.heads + tile.pass.head) * a.length;
  __syncwarp();
  if (merges) move_out<kWhole, true>(a, tile, warp, first);
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int r = first + 8 * half + g;
    const bool valid = r < tile.count;
    float* const to = lse + (valid ? tile.position(r) : 0);
    float sum = warp.rows.sum[half];
    sum += __shfl_xor_sync(0xffffffffu, sum, 1);
    sum += __shfl_xor_sync(0xffffffffu, sum, 2);
    const RowEnd end(warp.rows.max[half] * (warp.scale_log2 * 0.693147180559945f), sum,
                     merges && valid ? *to : -INFINITY);
    __syncwarp();
    if (valid && c == 0) *to = end.lse;
#pragma unroll
    for (int n = 0; n < Shape::kV / 8; ++n) {
      float2 x = {warp.rows.out[n][2 * half] * end.here, warp.rows.out[n][2 * half + 1] * end.here};
      auto* const both = reinterpret_cast<std::uint32_t*>(
          warp.queries + piece_at<Shape::kV>(8 * half + g, n) + 4 * c);
      if (merges) {  // what is not a row of the tile is not stored
        const float2 old = unpacked<A>(*both);
        x.x = fmaf(end.before, old.x, x.x);
        x.y = fmaf(end.before, old.y, x.y);
      }
      *both = packed<A>(x.x, x.y);
    }
  }
  __syncwarp();
  move_out<kWhole, false>(a, tile, warp, first);
}

// kWhole: widths, strides and addresses allow moves of 16 bytes.
template <class A, class Shape, template <class> class Ranges, bool kWhole>
__global__ void __launch_bounds__(Shape::kThreads, Shape::kMinBlocks)
    forward_mma(const __grid_constant__ ForwardArguments<A> a) {
  extern __shared__ __align__(128) char shared[];
  const QueryTile tile = query_tile(a, Shape::kRows);
  if (tile.count <= 0) return;
  constexpr int kStages = Shape::kStages;
  const int warp_number = static_cast<int>(threadIdx.x >> 5);
  const int first = warp_number * Shape::kWarpRows;
  const std::int64_t h = tile.pass.head;

  copy_rows<Shape::kQk, Shape::kRows, Shape::kThreads, kWhole>(
      shared, row_of(a.q, tile.batch, 0, h), static_cast<std::uint32_t>(a.q.row_stride * 2),
      static_cast<int>(a.q.width), [&](int r) { return r < tile.count ? tile.position(r) : -1; },
      [&](int r, int p) {
        return static_cast<std::uint32_t>(r / Shape::kWarpRows * Shape::kWarpBytes) +
               piece_at<Shape::kQk>(r % Shape::kWarpRows, p);
      });
  copies_commit();

  const A* const k = row_of(a.k, tile.batch, 0, h);
  const A* const v = row_of(a.v, tile.batch, 0, h);
  ForwardWarp<A, Shape> warp;
  warp.queries = shared + warp_number * Shape::kWarpBytes;
  warp.sign = a.scale < 0 ? 0x80008000u : 0;
  warp.scale_log2 = fmaxf(fabsf(a.scale) * 1.44269504088896f, 1e-30f);
  warp.rows.clear();
  Ranges<Shape> tiles(shared, tile, a.parts, warp.rows, first);

  // Step n computes tile n while up to kStages - 1 later ones arrive; the steps below 0 fill the
  // stages. Tiles are told and fetched as far ahead as their memory allows.
#pragma unroll 1
  for (int n = -kStages;; ++n) {
    const int next = n < 0 ? n + kStages : n + kStages - 1;  // step 0 has its stages full
    if (n != 0) tiles.prepare(next);
    if (n >= 0) {
      if (!tiles.has(n)) break;
      tiles.enter(n, warp.rows, tile, first);
      if (n == 0)
        copies_wait<kStages - 1>();
      else
        copies_wait<kStages - 2>();
    }
    if (n >= 0 || !Ranges<Shape>::kOne) __syncthreads();
    if (n != 0) {
      if (tiles.has(next)) {
        char* const stage = shared + Shape::kStagesAt + next % kStages * Shape::kStageBytes;
        const auto position = [&](int r) { return tiles.position(next, r); };
        copy_rows<Shape::kQk, Shape::kKeys, Shape::kThreads, kWhole>(
            stage, k, static_cast<std::uint32_t>(a.k.row_stride * 2), static_cast<int>(a.k.width),
            position, piece_at<Shape::kQk>);
        copy_rows<Shape::kV, Shape::kKeys, Shape::kThreads, kWhole>(
            stage + Shape::kKeys * Shape::kQk * 2, v,
            static_cast<std::uint32_t>(a.v.row_stride * 2), static_cast<int>(a.v.width), position,
            piece_at<Shape::kV>);
      }
      copies_commit();
    }
    if (n < 0) continue;
    if (n == 0) warp.keep_q();
    const std::int32_t t = tiles.first(n);
    if (t >= warp.rows.any_to || t + Shape::kKeys <= warp.rows.any_from) continue;
    const std::uint32_t* words = nullptr;
    if (tiles.part->masked != 0) {
      auto* const mask =
          reinterpret_cast<std::uint32_t*>(shared + Shape::kMaskAt) + first * (Shape::kKeys / 32);
      make_mask<Shape::kWarpRows, Shape::kKeys>(
          mask, *tiles.part, tiles.lane, t, [&](int r) { return tiles.position(n, r); }, tile,
          first);
      words = mask;
    }
    const char* const stage = shared + Shape::kStagesAt + n % kStages * Shape::kStageBytes;
#pragma unroll 1
    for (int r = 0; r < Shape::kKeys; r += Shape::kStep) {
      if (t + r >= warp.rows.any_to || t + r + Shape::kStep <= warp.rows.any_from) continue;
      warp.scores(stage, r);
      if (words != nullptr || t + r < warp.rows.all_from || t + r + Shape::kStep > warp.rows.all_to)
        warp.mask(words == nullptr ? nullptr : words + r / 32, t + r);
      warp.soften();
      warp.absorb(stage + Shape::kKeys * Shape::kQk * 2, r);
    }
  }
  copies_wait<0>();
  if (first < tile.count) store_rows<kWhole>(a, tile, warp, first);
}

}  // namespace longstride::ops::cuda
