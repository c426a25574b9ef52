// The vectors of the attention kernels: a tile row is kVectors of them, lanes are queries. Masks
// and transposition. Compiled once per instruction set (Highway).
#if defined(LONGSTRIDE_OPS_ATTENTION_SIMD_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef LONGSTRIDE_OPS_ATTENTION_SIMD_INL_H_
#undef LONGSTRIDE_OPS_ATTENTION_SIMD_INL_H_
#else
#define LONGSTRIDE_OPS_ATTENTION_SIMD_INL_H_
#endif

#include <hwy/highway.h>

#include <cstdint>

#include "ops/attention/walk.h"
#include "ops/simd.h"

HWY_BEFORE_NAMESPACE();
namespace longstride::ops::HWY_NAMESPACE {

namespace hn = hwy::HWY_NAMESPACE;

namespace {

using Wide = hn::CappedTag<float, kTile>;
using One = hn::CappedTag<float, 1>;
constexpr int kLanes = static_cast<int>(hn::MaxLanes(Wide()));
constexpr int kVectors = kTile / kLanes;  // vectors of a tile row

// Which of the queries of vector n of a tile keep key j of the chunk.
HWY_INLINE HWY_MAYBE_UNUSED hn::Mask<Wide> kept_of(const Mask& mask, int j, int n) {
  const hn::RebindToUnsigned<Wide> du;
  const hn::RebindToSigned<Wide> di;
  if (mask.by_pair)
    return hn::RebindMask(Wide(), hn::MaskFromVec(hn::Load(du, mask.active[j] + n * kLanes)));
  const auto at = hn::Set(di, j);
  const auto before = hn::Gt(hn::Load(di, mask.from.data() + n * kLanes), at);
  const auto inside = hn::Gt(hn::Load(di, mask.to.data() + n * kLanes), at);
  return hn::RebindMask(Wide(), hn::AndNot(before, inside));
}

// Calls step(j, keep) for the keys of a mask; keep(n, yes, no) is `yes` where the queries of vector
// n keep key j, else `no`.
template <class Step>
HWY_INLINE void for_keys(const Mask& mask, const Step& step) {
  using V = hn::Vec<Wide>;
  const auto some = [&](int begin, int end) HWY_ATTR {
    for (int j = begin; j < end; ++j)
      step(j, [&](int n, V yes, V no)
                  HWY_ATTR { return hn::IfThenElse(kept_of(mask, j, n), yes, no); });
  };
  some(mask.begin, mask.free_begin);
  for (int j = mask.free_begin; j < mask.free_end; ++j)
    step(j, [](int, V yes, V) HWY_ATTR { return yes; });
  some(mask.free_end, mask.end);
}

// to[c * to_stride + r] = from(r)[c], for r in [begin, end).
template <class From>
HWY_INLINE void transpose_one_by_one(const From& from, int begin, int end, std::int64_t cols,
                                     float* to, std::int64_t to_stride) {
  for (int r = begin; r < end; ++r)
    for (std::int64_t c = 0; c < cols; ++c) to[c * to_stride + r] = from(r)[c];
}

// The same for r in [0, rows), in blocks of four by four.
template <class From>
HWY_INLINE void transpose(const From& from, int rows, std::int64_t cols, float* to,
                          std::int64_t to_stride) {
  int r = 0;
#if HWY_TARGET != HWY_SCALAR
  const hn::CappedTag<float, 4> d;
  for (; r + 4 <= rows; r += 4) {
    const float* const a[4] = {from(r), from(r + 1), from(r + 2), from(r + 3)};
    std::int64_t c = 0;
    for (; c + 4 <= cols; c += 4) {
      const auto x0 = hn::LoadU(d, a[0] + c), x1 = hn::LoadU(d, a[1] + c);
      const auto x2 = hn::LoadU(d, a[2] + c), x3 = hn::LoadU(d, a[3] + c);
      const auto low02 = hn::InterleaveLower(d, x0, x2), low13 = hn::InterleaveLower(d, x1, x3);
      const auto up02 = hn::InterleaveUpper(d, x0, x2), up13 = hn::InterleaveUpper(d, x1, x3);
      float* out = to + c * to_stride + r;
      hn::StoreU(hn::InterleaveLower(d, low02, low13), d, out);
      hn::StoreU(hn::InterleaveUpper(d, low02, low13), d, out + to_stride);
      hn::StoreU(hn::InterleaveLower(d, up02, up13), d, out + 2 * to_stride);
      hn::StoreU(hn::InterleaveUpper(d, up02, up13), d, out + 3 * to_stride);
    }
    for (; c < cols; ++c)
      for (int n = 0; n < 4; ++n) to[c * to_stride + r + n] = a[n][c];
  }
#endif
  transpose_one_by_one(from, r, rows, cols, to, to_stride);
}

}  // namespace
}  // namespace longstride::ops::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif
