// Products of tiles, and rows of bf16 packed into the tiles that products want:
//
//   natural      [16 rows][32 columns]                          left operand, sums over columns
//   by_column    [16 column pairs][16 rows]                     right operand, sums over columns
//   by_row       [16 row pairs][16 columns]                     right operand, sums over rows
//   transposed   [16 columns][32 rows]                          left operand, sums over rows
//
// Rows are given by pointers; columns behind the width are zero.
#pragma once

#include "ops/attention/attention_amx_emulated.h"

namespace longstride::ops::cpu {

// Tiles at[r row + c col].
struct Grid {
  TileData* at;
  std::int64_t row, col;
};

// One row of kCols tiles, or two rows of one or two: c += sum over k of a b.
template <int kRows, int kCols, bool kAdd, class Unit>
inline __attribute__((always_inline)) void multiply_block(Unit& u, const Grid& c, const Grid& a,
                                                          const Grid& b, std::int64_t depth) {
  static_assert(kRows == 1 ? kCols <= 4 : kRows == 2 && kCols <= 2);
  TileData *const c0 = c.at, *const c1 = c.at + (kRows == 2 ? c.row : c.col);
  TileData *const c2 = c.at + (kRows == 2 ? c.col : 2 * c.col), *const c3 = c1 + 2 * c.col;
  TileData* const corner = kRows == 2 ? c1 + c.col : c3;
  constexpr bool kSecond = kRows == 2 || kCols > 1, kThird = kRows * kCols > 2;
  constexpr bool kFourth = kRows * kCols > 3;
  if constexpr (kAdd) {
    u.template load_tile<0>(*c0);
    if constexpr (kSecond) u.template load_tile<1>(*c1);
    if constexpr (kThird) u.template load_tile<2>(*c2);
    if constexpr (kFourth) u.template load_tile<3>(*corner);
  } else {
    u.template zero<0>();
    if constexpr (kSecond) u.template zero<1>();
    if constexpr (kThird) u.template zero<2>();
    if constexpr (kFourth) u.template zero<3>();
  }
  for (std::int64_t k = 0; k < depth; ++k) {
    const TileData *const left = a.at + k * a.col, *const right = b.at + k * b.row;
    u.template load_tile<4>(left[0]);
    u.template load_tile<6>(right[0]);
    u.template product<0, 4, 6>();
    if constexpr (kRows == 2) {
      u.template load_tile<5>(left[a.row]);
      u.template product<1, 5, 6>();
      if constexpr (kCols == 2) {
        u.template load_tile<7>(right[b.col]);
        u.template product<2, 4, 7>();
        u.template product<3, 5, 7>();
      }
    } else {
      if constexpr (kCols > 1) {
        u.template load_tile<7>(right[b.col]);
        u.template product<1, 4, 7>();
      }
      if constexpr (kCols > 2) {
        u.template load_tile<5>(right[2 * b.col]);
        u.template product<2, 4, 5>();
      }
      if constexpr (kCols > 3) {
        u.template load_tile<6>(right[3 * b.col]);
        u.template product<3, 4, 6>();
      }
    }
  }
  u.template store_tile<0>(*c0);
  if constexpr (kSecond) u.template store_tile<1>(*c1);
  if constexpr (kThird) u.template store_tile<2>(*c2);
  if constexpr (kFourth) u.template store_tile<3>(*corner);
}

// c [rows][cols] (+)= a [rows][depth] b [depth][cols], all in tiles. Four sums at a time hide the
// 52 cycles of a product behind the 16 in which the next one can start.
template <bool kAdd, class Unit>
__attribute__((noinline)) void multiply(Unit& u, Grid c, Grid a, Grid b, std::int64_t rows,
                                        std::int64_t cols, std::int64_t depth) {
  for (; rows >= 2; rows -= 2, c.at += 2 * c.row, a.at += 2 * a.row) {
    Grid to = c, right = b;
    std::int64_t left = cols;
    for (; left >= 2; left -= 2, to.at += 2 * c.col, right.at += 2 * b.col)
      multiply_block<2, 2, kAdd>(u, to, a, right, depth);
    if (left > 0) multiply_block<2, 1, kAdd>(u, to, a, right, depth);
  }
  if (rows == 0) return;
  for (; cols >= 4; cols -= 4, c.at += 4 * c.col, b.at += 4 * b.col)
    multiply_block<1, 4, kAdd>(u, c, a, b, depth);
  if (cols == 3) multiply_block<1, 3, kAdd>(u, c, a, b, depth);
  if (cols == 2) multiply_block<1, 2, kAdd>(u, c, a, b, depth);
  if (cols == 1) multiply_block<1, 1, kAdd>(u, c, a, b, depth);
}

// Columns [c, c + 32) of a row.
template <class Unit>
inline typename Unit::W row_part(const bf16* row, std::int64_t c, std::int64_t width) {
  return Unit::load_pairs(row + c, static_cast<int>(width - c < kPairs ? width - c : kPairs));
}

// Copies rows side by side to `to` and points rows[] there; bit j of the result: row j holds a NaN
// or an infinity. Rows that are a power of two apart share one set of each cache: what is read more
// than once is to be read from a copy.
template <class Unit>
std::uint64_t gather(const bf16** rows, int count, std::int64_t width, TileData* to) {
  std::uint64_t wild = 0;
  bf16* at = reinterpret_cast<bf16*>(to);
  for (int j = 0; j < count; ++j) {
    bool finite = true;
    const bf16* const copy = at;
    for (std::int64_t c = 0; c < width; c += kPairs, at += kPairs) {
      const typename Unit::W part = row_part<Unit>(rows[j], c, width);
      finite = finite && !Unit::not_finite(part);
      Unit::store_words(at, part);
    }
    if (!finite) wild |= std::uint64_t{1} << j;
    rows[j] = copy;
  }
  return wild;
}

// 16 rows -> to[columns / 32].
template <class Unit>
void pack_natural(const bf16* const* rows, std::int64_t width, TileData* to) {
  for (std::int64_t c = 0; c < width; c += kPairs, ++to)
    for (int r = 0; r < kSide; ++r)
      Unit::store_words(to->row(r), row_part<Unit>(rows[r], c, width));
}

// 16 rows -> to[columns / 32].
template <class Unit>
void pack_by_column(const bf16* const* rows, std::int64_t width, TileData* to) {
  typename Unit::W part[kSide];
  for (std::int64_t c = 0; c < width; c += kPairs, ++to) {
    for (int r = 0; r < kSide; ++r) part[r] = row_part<Unit>(rows[r], c, width);
    Unit::transpose(part, *to);
  }
}

// 32 rows -> to[columns / 16], or a neighbour more that nobody reads; tiles `step` apart.
template <class Unit>
void pack_by_row(const bf16* const* rows, std::int64_t width, TileData* to, std::int64_t step) {
  typename Unit::W low, high;
  for (std::int64_t c = 0; c < width; c += kPairs, to += 2 * step)
    for (int r = 0; r < kSide; ++r) {
      Unit::zip_words(row_part<Unit>(rows[2 * r], c, width),
                      row_part<Unit>(rows[2 * r + 1], c, width), low, high);
      Unit::store_words(to->row(r), low);
      Unit::store_words(to[step].row(r), high);
    }
}

// 32 rows -> to[columns / 16], or a neighbour more; tiles `step` apart.
template <class Unit>
void pack_transposed(const bf16* const* rows, std::int64_t width, TileData* to, std::int64_t step) {
  typename Unit::W low[kSide], high[kSide];
  for (std::int64_t c = 0; c < width; c += kPairs, to += 2 * step) {
    for (int r = 0; r < kSide; ++r)
      Unit::zip_words(row_part<Unit>(rows[2 * r], c, width),
                      row_part<Unit>(rows[2 * r + 1], c, width), low[r], high[r]);
    Unit::transpose(low, *to);
    Unit::transpose(high, to[step]);
  }
}

// Row r of the tiles at[c step] += weight x[...]: for rows that tiles cannot multiply.
template <class Unit>
void add_product(TileData* at, int r, std::int64_t step, float weight, const bf16* x,
                 std::int64_t width) {
  for (std::int64_t left = width; left > 0; left -= kSide, x += kSide, at += step) {
    const typename Unit::F row = Unit::load_bf16(x, static_cast<int>(left < kSide ? left : kSide));
    Unit::store(at->row(r), Unit::mul_add(Unit::set(weight), row, Unit::load(at->row(r))));
  }
}

}  // namespace longstride::ops::cpu
