// Operands of a product as its kernel reads them: floats, in the order of use, in runs that are no
// power of two apart (rows of a matrix often are, all in one set of a cache). Included once per
// instruction set, hence no #pragma once.
#if defined(LONGSTRIDE_OPS_LINEAR_PACK_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef LONGSTRIDE_OPS_LINEAR_PACK_H_
#undef LONGSTRIDE_OPS_LINEAR_PACK_H_
#else
#define LONGSTRIDE_OPS_LINEAR_PACK_H_
#endif

#include <algorithm>
#include <cstdint>

#include "ops/linear/product.h"
#include "ops/simd.h"

HWY_BEFORE_NAMESPACE();
namespace longstride::ops::HWY_NAMESPACE {

// A tile of the output that stays in registers: kTileRows x 2 vectors (of 16 registers 12 sums, of
// 32 registers 24).
inline constexpr std::int64_t kTileRows = HWY_ARCH_ARM_A64 || HWY_MAX_BYTES >= 64 ? 12 : 6;
inline std::int64_t tile_cols() { return 2 * float_lanes(); }

inline constexpr std::int64_t kDepth = 256;  // of the inner dimension in one block
inline constexpr std::int64_t kGap = 16;     // floats that keep runs off the powers of two

// Left operand: groups of kTileRows rows, each a run of kGroup floats. As rows: row r of the group
// at r * kRow. Of a transposed operand: for each k the group's rows side by side.
inline constexpr std::int64_t kRow = kDepth + kGap;
inline constexpr std::int64_t kGroup = kTileRows * kRow;

// Right operand: panels of tile_cols() columns; for each k the panel's columns side by side.
inline std::int64_t panel_size(std::int64_t depth) { return depth * tile_cols() + kGap; }

template <class A>
HWY_INLINE void copy_floats(const A* from, std::int64_t n, float* to) {
  const std::int64_t step = float_lanes();
  std::int64_t i = 0;
  for (; i + step <= n; i += step) Whole{}.store(Whole{}.load(from + i), to + i);
  for (; i < n; ++i) to[i] = static_cast<float>(from[i]);
}

// rows x depth of a, into `packed`; what lies behind the last row is left as it was.
template <class A>
void pack_left(cpu::Operand<A> a, std::int64_t rows, std::int64_t depth, float* packed) {
  if (!a.transposed) {
    for (std::int64_t r = 0; r < rows; ++r)
      copy_floats(a.data + r * a.stride, depth,
                  packed + r / kTileRows * kGroup + r % kTileRows * kRow);
    return;
  }
  // Whole vectors reach into the place of the next k, which is written next (or into the gap).
  const std::int64_t step = float_lanes(), reach = (kTileRows + step - 1) / step * step;
  for (std::int64_t k = 0; k < depth; ++k) {
    const A* const from = a.data + k * a.stride;
    float* to = packed + k * kTileRows;
    std::int64_t r = 0;
    for (; r + reach <= rows; r += kTileRows, to += kGroup)
      for (std::int64_t i = 0; i < reach; i += step)
        Whole{}.store(Whole{}.load(from + r + i), to + i);
    for (; r < rows; r += kTileRows, to += kGroup)
      for (std::int64_t i = 0; i < std::min(kTileRows, rows - r); ++i)
        to[i] = static_cast<float>(from[r + i]);
  }
}

// depth x cols of b, into panels; what lies behind the last column is left as it was.
template <class A>
void pack_right(cpu::Operand<A> b, std::int64_t depth, std::int64_t cols, float* packed) {
  const std::int64_t width = tile_cols(), panel = panel_size(depth);
  if (!b.transposed) {
    for (std::int64_t k = 0; k < depth; ++k)
      for (std::int64_t c = 0; c < cols; c += width)
        copy_floats(b.data + k * b.stride + c, std::min(width, cols - c),
                    packed + c / width * panel + k * width);
    return;
  }
  for (std::int64_t c = 0; c < cols; ++c) {
    const A* const from = b.data + c * b.stride;
    float* const to = packed + c / width * panel + c % width;
    for (std::int64_t k = 0; k < depth; ++k) to[k * width] = static_cast<float>(from[k]);
  }
}

}  // namespace longstride::ops::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // LONGSTRIDE_OPS_LINEAR_PACK_H_
