// Rows in and out of attention backward, and its products of a warp's fragments.
#pragma once

#include "ops/attention/mma.cuh"
#include "tensor/tensor.h"

namespace longstride::ops::cuda {

// kRows rows of `width` values into shared memory, kWidth wide, zeros behind `width` and where
// there is no row. offset(r): of row r from `from` in elements, or -1.
template <int kWidth, int kRows, int kThreads, class A, class Offset>
__device__ __forceinline__ void load_rows(const A* from, std::int64_t width, bool whole_pieces,
                                          char* to, const Offset& offset) {
  constexpr int kPieces = kWidth / 8, kStep = kThreads / kPieces;
  static_assert(kStep % 8 == 0 && kRows % 8 == 0);  // a thread's rows are swizzled alike
  const int p = static_cast<int>(threadIdx.x) % kPieces,
            r0 = static_cast<int>(threadIdx.x) / kPieces;
  to += piece_at<kWidth>(r0, p);
  from += p * 8;
  const auto existing = static_cast<int>(width) - p * 8;
  if (whole_pieces) {
    const std::uint32_t at = shared_address(to);
#pragma unroll
    for (int k = 0; k < kRows; k += kStep) {
      if (kRows % kStep != 0 && r0 + k >= kRows) break;
      const std::int64_t row = offset(r0 + k);
      const bool valid = row >= 0 && existing > 0;
      copy16(at + static_cast<std::uint32_t>(k * kWidth * 2), from + (valid ? row : -p * 8), valid);
    }
    return;
  }
#pragma unroll 1
  for (int k = 0; r0 + k < kRows; k += kStep) {
    const std::int64_t row = offset(r0 + k);
    device::Pack<A, 8> piece;
#pragma unroll
    for (int e = 0; e < 8; ++e)
      piece.at[e] = row >= 0 && e < existing ? from[row + e] : device::from_float<A>(0);
    device::store(reinterpret_cast<A*>(to + k * kWidth * 2), piece);
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

// How results go to memory.
enum class Write { store, add, piecewise };  // piecewise: value by value; store or add as told

// Four pieces of eight columns; lane c of four holds columns 2c and 2c + 1 of each and writes the
// whole piece c: to `to` (or nowhere: nullptr), of which `columns` exist.
template <Write kWrite, class A>
__device__ __forceinline__ void write_pieces(const float (&v)[4][2], A* to, int columns,
                                             bool stores) {
  std::uint32_t w[4] = {};
  const bool any = to != nullptr && columns > 0;
  const bool add = kWrite == Write::add || (kWrite == Write::piecewise && !stores);
  device::Pack<A, 8> piece;
  auto& words = reinterpret_cast<std::uint32_t(&)[4]>(piece);
  if (add) {
    if (kWrite == Write::add) {
      uint4 old{};
      if (any) old = *reinterpret_cast<const uint4*>(to);
      w[0] = old.x, w[1] = old.y, w[2] = old.z, w[3] = old.w;
    } else {
#pragma unroll
      for (int e = 0; e < 8; ++e)
        piece.at[e] = any && e < columns ? to[e] : device::from_float<A>(0);
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
  if constexpr (kWrite == Write::piecewise) {
#pragma unroll
    for (int n = 0; n < 4; ++n) words[n] = w[n];
#pragma unroll
    for (int e = 0; e < 8; ++e)
      if (e < columns) to[e] = piece.at[e];
  } else {
    *reinterpret_cast<uint4*>(to) = {w[0], w[1], w[2], w[3]};
  }
}

// A fragment of 16 rows x 8 kNs columns, times scale; row(r): where row r in [0, 16) of the
// fragment begins in memory, or nullptr; first: its first column, of `width`.
template <Write kWrite, int kNs, class A, class Row>
__device__ __forceinline__ void write_fragment(const float (&c)[kNs][4], float scale, int first,
                                               int width, bool stores, const Row& row) {
  const int lane = static_cast<int>(threadIdx.x & 31), g = lane / 4, mine = lane % 4;
  static_assert(kNs % 2 == 0);
  // Four pieces: of one row, or two each of rows g and g + 8.
  constexpr int kAcross = kNs % 4 == 0 ? 4 : 2, kDown = 4 / kAcross;
#pragma unroll
  for (int up = 0; up < 2; up += kDown) {
    A* const to = row(g + 8 * (kDown == 1 ? up : mine / 2));
#pragma unroll
    for (int n = 0; n < kNs; n += kAcross) {
      float v[4][2];
#pragma unroll
      for (int m = 0; m < 4; ++m) {
        const int half = kDown == 1 ? up : m / 2;
        v[m][0] = c[n + m % kAcross][2 * half] * scale;
        v[m][1] = c[n + m % kAcross][2 * half + 1] * scale;
      }
      const int column = first + 8 * (n + mine % kAcross);
      write_pieces<kWrite, A>(v, to == nullptr ? nullptr : to + column, width - column, stores);
    }
  }
}

// Calls act.template operator()<Write>().
template <class Act>
__device__ __forceinline__ void with_write(bool whole_pieces, bool stores, const Act& act) {
  if (!whole_pieces)
    act.template operator()<Write::piecewise>();
  else if (stores)
    act.template operator()<Write::store>();
  else
    act.template operator()<Write::add>();
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

// s[m] += a[m] b^T for 16 values of the depth, from `d`: a from `held` or, where that is nullptr,
// from shared memory at a_at (16 rows each from a_row), b from shared memory, 16 rows from b_row.
template <class A, int kMs, int kWidth>
__device__ __forceinline__ void scores(float (&s)[kMs][2][4], int d,
                                       const std::uint32_t (*held)[kWidth / 16][4],
                                       std::uint32_t a_at, int a_row, std::uint32_t b_at,
                                       int b_row) {
  const MatrixLane la = lane_of_a(), lb = lane_of_b();
  std::uint32_t b[4], a[kMs][4];
  load_matrices(b, b_at + piece_at<kWidth>(b_row + lb.row, 2 * d + lb.piece));
#pragma unroll
  for (int m = 0; m < kMs; ++m) {
    if (held != nullptr) {
#pragma unroll
      for (int e = 0; e < 4; ++e) a[m][e] = held[m][d][e];
    } else {
      load_matrices(a[m], a_at + piece_at<kWidth>(a_row + 16 * m + la.row, 2 * d + la.piece));
    }
  }
#pragma unroll
  for (int m = 0; m < kMs; ++m) {
    multiply_add<A>(s[m][0], a[m], b[0], b[1]);
    multiply_add<A>(s[m][1], a[m], b[2], b[3]);
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

}  // namespace longstride::ops::cuda
