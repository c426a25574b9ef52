// The vector verbs of the attention kernels, compiled once per instruction set (Highway).
//
// A tile is stored transposed, [index][kTile]: vector lanes are queries, so scores, softmax and
// masks need no operation across lanes, and a key or value element is a broadcast, read in place.
// Where a pair is not kept the accumulator keeps its old bits (a product by zero would let a NaN
// through). Every accumulator adds its terms in key order or width order, one MulAdd at a time,
// whatever the blocking: blocks are independent accumulators only.
#if defined(LONGSTRIDE_OPS_ATTENTION_SIMD_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef LONGSTRIDE_OPS_ATTENTION_SIMD_INL_H_
#undef LONGSTRIDE_OPS_ATTENTION_SIMD_INL_H_
#else
#define LONGSTRIDE_OPS_ATTENTION_SIMD_INL_H_
#endif

#include <hwy/highway.h>

#include <cstdint>

#include "ops/attention/walk.h"

HWY_BEFORE_NAMESPACE();
namespace longstride::ops::HWY_NAMESPACE {

namespace hn = hwy::HWY_NAMESPACE;

namespace {

using Wide = hn::CappedTag<float, kTile>;
using One = hn::CappedTag<float, 1>;
constexpr int kLanes = static_cast<int>(hn::MaxLanes(Wide()));
constexpr int kVectors = kTile / kLanes;  // vectors of a tile row

// Independent accumulators: 12 hide the latency of MulAdd on two ports and leave registers (of 16)
// for the operands.
constexpr int kBlock = kVectors < 12 ? 12 / kVectors : 1;
// Masks take registers as well.
constexpr int kMaskedBlock = kVectors < 8 ? 8 / kVectors : 1;

// e^x for x <= 0 or little above: e^0 = 1 exactly, 0 below -87, NaN stays NaN. About 1 ulp.
template <class D, class V = hn::Vec<D>>
HWY_INLINE V exp(D d, V x) {
  const hn::RebindToSigned<D> di;
  const V n = hn::Round(hn::Mul(x, hn::Set(d, 1.44269504088896341f)));
  // ln 2 in two pieces, the first short enough for n times it to be exact.
  V r = hn::MulAdd(n, hn::Set(d, -0.693359375f), x);
  r = hn::MulAdd(n, hn::Set(d, 2.12194440e-4f), r);
  // Taylor's series to r^7 / 7!: |r| <= ln(2) / 2, the rest is below 2^-29.
  V y = hn::Set(d, 1.0f / 5040);
  y = hn::MulAdd(y, r, hn::Set(d, 1.0f / 720));
  y = hn::MulAdd(y, r, hn::Set(d, 1.0f / 120));
  y = hn::MulAdd(y, r, hn::Set(d, 1.0f / 24));
  y = hn::MulAdd(y, r, hn::Set(d, 1.0f / 6));
  y = hn::MulAdd(y, r, hn::Set(d, 0.5f));
  y = hn::MulAdd(y, r, hn::Set(d, 1.0f));
  y = hn::MulAdd(y, r, hn::Set(d, 1.0f));
  const auto exponent = hn::Add(hn::ConvertTo(di, n), hn::Set(di, 127));
  const V power = hn::BitCast(d, hn::ShiftLeft<23>(exponent));
  return hn::IfThenZeroElse(hn::Lt(x, hn::Set(d, -87.0f)), hn::Mul(y, power));
}

// Of one row of a masked run: which of the tile's queries keep the key.
HWY_INLINE hn::Mask<Wide> active(const std::uint32_t* row, int n) {
  const hn::RebindToUnsigned<Wide> du;
  return hn::RebindMask(Wide(), hn::MaskFromVec(hn::Load(du, row + n * kLanes)));
}

// s[j][q] = scale sum_c k[j][c] qt[c][q] for j in [begin, end); up to kSlack rows behind `end` are
// overwritten, their pointers must be readable.
HWY_NOINLINE HWY_MAYBE_UNUSED void scores(const float* const* k, int begin, int end,
                                          std::int64_t width, const float* HWY_RESTRICT qt,
                                          float scale, float* HWY_RESTRICT s) {
  const Wide d;
  for (int j = begin; j < end; j += kBlock) {
    const float* row[kBlock];
    hn::Vec<Wide> sum[kBlock][kVectors];
#pragma GCC unroll 16
    for (int b = 0; b < kBlock; ++b) {
      row[b] = k[j + b];
#pragma GCC unroll 16
      for (int n = 0; n < kVectors; ++n) sum[b][n] = hn::Zero(d);
    }
    for (std::int64_t c = 0; c < width; ++c) {
      hn::Vec<Wide> q[kVectors];
#pragma GCC unroll 16
      for (int n = 0; n < kVectors; ++n) q[n] = hn::Load(d, qt + c * kTile + n * kLanes);
#pragma GCC unroll 16
      for (int b = 0; b < kBlock; ++b) {
        const auto key = hn::Set(d, row[b][c]);
#pragma GCC unroll 16
        for (int n = 0; n < kVectors; ++n) sum[b][n] = hn::MulAdd(key, q[n], sum[b][n]);
      }
    }
#pragma GCC unroll 16
    for (int b = 0; b < kBlock; ++b)
#pragma GCC unroll 16
      for (int n = 0; n < kVectors; ++n)
        hn::Store(hn::Mul(sum[b][n], hn::Set(d, scale)), d, s + (j + b) * kTile + n * kLanes);
  }
}

// ot[c][q] += sum_{j in run} v[j][c] p[j][q], c in [first, first + kDims).
template <int kDims, bool kMasked>
HWY_INLINE void add_dims(const float* const* v, Run run, const Mask& mask, std::int64_t first,
                         const float* HWY_RESTRICT p, float* HWY_RESTRICT ot) {
  const Wide d;
  hn::Vec<Wide> sum[kDims][kVectors];
#pragma GCC unroll 16
  for (int b = 0; b < kDims; ++b)
#pragma GCC unroll 16
    for (int n = 0; n < kVectors; ++n)
      sum[b][n] = hn::Load(d, ot + (first + b) * kTile + n * kLanes);
  for (int j = run.begin; j < run.end; ++j) {
    const float* HWY_RESTRICT row = v[j] + first;
    hn::Vec<Wide> weight[kVectors];
#pragma GCC unroll 16
    for (int n = 0; n < kVectors; ++n) weight[n] = hn::Load(d, p + j * kTile + n * kLanes);
#pragma GCC unroll 16
    for (int b = 0; b < kDims; ++b) {
      const auto value = hn::Set(d, row[b]);
#pragma GCC unroll 16
      for (int n = 0; n < kVectors; ++n) {
        const auto next = hn::MulAdd(value, weight[n], sum[b][n]);
        if constexpr (kMasked)
          sum[b][n] = hn::IfThenElse(active(mask.active[j], n), next, sum[b][n]);
        else
          sum[b][n] = next;
      }
    }
  }
#pragma GCC unroll 16
  for (int b = 0; b < kDims; ++b)
#pragma GCC unroll 16
    for (int n = 0; n < kVectors; ++n)
      hn::Store(sum[b][n], d, ot + (first + b) * kTile + n * kLanes);
}

template <int kDims, bool kMasked>
HWY_INLINE void add_run(const float* const* v, Run run, const Mask& mask, std::int64_t first,
                        std::int64_t width, const float* p, float* ot) {
  for (; first + kDims <= width; first += kDims)
    add_dims<kDims, kMasked>(v, run, mask, first, p, ot);
  if constexpr (kDims > 1) add_run<kDims / 2, kMasked>(v, run, mask, first, width, p, ot);
}

// ot[c][q] += sum_j v[j][c] p[j][q] over the kept pairs of the mask.
HWY_NOINLINE HWY_MAYBE_UNUSED void add_values(const float* const* v, const Mask& mask,
                                              std::int64_t width, const float* p, float* ot) {
  for (int r = 0; r < mask.runs; ++r) {
    const Run run = mask.run[static_cast<std::size_t>(r)];
    if (run.masked)
      add_run<kMaskedBlock, true>(v, run, mask, 0, width, p, ot);
    else
      add_run<kBlock, false>(v, run, mask, 0, width, p, ot);
  }
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
