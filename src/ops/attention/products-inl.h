// The matrix products of the attention kernels, compiled once per instruction set (Highway).
//
// A tile is stored transposed, [index][kTile]: vector lanes are queries, so scores, softmax and
// masks need no operation across lanes, and a key or value element is a broadcast. Keys and values
// are packed rows (pack-inl.h). Every accumulator adds its terms in key order, query order or
// width order, one MulAdd at a time, whatever the blocking: blocks are independent accumulators
// only. A pair that is not kept has weight 0, which adds nothing as long as the other factor is
// finite; where it is not, the *_with_gaps versions skip the pair.
//
// bound  MulAdd: a block of b rows by n vectors takes b + n loads for b n MulAdds
#if defined(LONGSTRIDE_OPS_ATTENTION_PRODUCTS_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef LONGSTRIDE_OPS_ATTENTION_PRODUCTS_INL_H_
#undef LONGSTRIDE_OPS_ATTENTION_PRODUCTS_INL_H_
#else
#define LONGSTRIDE_OPS_ATTENTION_PRODUCTS_INL_H_
#endif

#include <type_traits>

#include "ops/attention/simd-inl.h"

HWY_BEFORE_NAMESPACE();
namespace longstride::ops::HWY_NAMESPACE {
namespace {

// Registers that vectors may take.
constexpr int kRegisters = (HWY_ARCH_X86 && HWY_TARGET <= HWY_AVX3) || HWY_ARCH_ARM_A64 ? 32 : 16;

// Tiles that scores() and add_values() take at once: one vector a tile would make broadcasts, one a
// MulAdd, the bound.
constexpr int kTilesAtOnce = kVectors == 1 && kRegisters == 32 ? 2 : 1;

// Rows of a block for `vectors` accumulators each: at least 8 accumulators hide the latency of
// MulAdd on two ports; operands take the other registers.
constexpr int block_rows(int vectors) {
  return kRegisters == 32 ? (vectors >= 16  ? 1
                             : vectors >= 4 ? 4
                                            : 8)
                          : (vectors >= 8   ? 1
                             : vectors >= 4 ? 3
                                            : 6);
}

// Calls step(size, at) for blocks that cover [at, end), kSize rows each or, at the end, fewer. In
// steps of 6 the end is reached by 4: blocks below it have too few accumulators.
template <int kSize, class Step>
HWY_INLINE void for_blocks(std::int64_t at, std::int64_t end, const Step& step) {
  for (; end - at >= kSize && !(kSize == 6 && end - at == 8); at += kSize)
    step(std::integral_constant<int, kSize>(), at);
  if constexpr (kSize > 1) for_blocks<kSize == 6 ? 4 : kSize / 2>(at, end, step);
}

// Calls work(tiles, first, begin, end) over the keys of two masks: with kTogether 2, the keys that
// both have for both tiles at once; the others tile by tile. In key order for each tile.
template <int kTogether, class Work>
HWY_INLINE void for_tiles(const Mask* mask, const Work& work) {
  const int begin = std::max(mask[0].begin, mask[1].begin);
  const int end = std::min(mask[0].end, mask[1].end);
  const bool together = kTogether == 2 && begin < end;
  for (int t = 0; t < 2; ++t) {
    const int stop = together ? begin : mask[t].end;
    if (mask[t].begin < stop) work(std::integral_constant<int, 1>(), t, mask[t].begin, stop);
  }
  if constexpr (kTogether == 2) {
    if (!together) return;
    work(std::integral_constant<int, 2>(), 0, begin, end);
    for (int t = 0; t < 2; ++t)
      if (end < mask[t].end) work(std::integral_constant<int, 1>(), t, end, mask[t].end);
  }
}

// s[t][j][q] = scale sum_c k[j][c] qt[t][c][q] for j in [begin, end) and kTiles tiles t.
template <int kTiles>
HWY_NOINLINE HWY_MAYBE_UNUSED void scores(const float* HWY_RESTRICT k, int begin, int end,
                                          std::int64_t width, const float* const* qt, float scale,
                                          float* const* s) {
  const Wide d;
  for_blocks<block_rows(kTiles * kVectors)>(begin, end, [&](auto size, std::int64_t j) HWY_ATTR {
    constexpr int kRows = decltype(size)::value;
    const float* row[kRows];
    hn::Vec<Wide> sum[kRows][kTiles][kVectors];
#pragma GCC unroll 16
    for (int b = 0; b < kRows; ++b) {
      row[b] = k + (j + b) * width;
#pragma GCC unroll 16
      for (int t = 0; t < kTiles; ++t)
#pragma GCC unroll 16
        for (int n = 0; n < kVectors; ++n) sum[b][t][n] = hn::Zero(d);
    }
    const float* q[kTiles];
#pragma GCC unroll 16
    for (int t = 0; t < kTiles; ++t) q[t] = qt[t];
    for (std::int64_t c = 0; c < width; ++c) {
      hn::Vec<Wide> column[kTiles][kVectors];
#pragma GCC unroll 16
      for (int t = 0; t < kTiles; ++t)
#pragma GCC unroll 16
        for (int n = 0; n < kVectors; ++n)
          column[t][n] = hn::Load(d, q[t] + c * kTile + n * kLanes);
#pragma GCC unroll 16
      for (int b = 0; b < kRows; ++b) {
        const auto key = hn::Set(d, row[b][c]);
#pragma GCC unroll 16
        for (int t = 0; t < kTiles; ++t)
#pragma GCC unroll 16
          for (int n = 0; n < kVectors; ++n)
            sum[b][t][n] = hn::MulAdd(key, column[t][n], sum[b][t][n]);
      }
    }
#pragma GCC unroll 16
    for (int t = 0; t < kTiles; ++t)
#pragma GCC unroll 16
      for (int b = 0; b < kRows; ++b)
#pragma GCC unroll 16
        for (int n = 0; n < kVectors; ++n)
          hn::Store(hn::Mul(sum[b][t][n], hn::Set(d, scale)), d,
                    s[t] + (j + b) * kTile + n * kLanes);
  });
}

// ot[t][c][q] += sum_j v[j][c] p[t][j][q] over j in [begin, end).
template <int kTiles>
HWY_NOINLINE HWY_MAYBE_UNUSED void add_values(const float* HWY_RESTRICT v, int begin, int end,
                                              std::int64_t width, const float* const* p,
                                              float* const* ot) {
  const Wide d;
  for_blocks<block_rows(kTiles * kVectors)>(0, width, [&](auto size, std::int64_t first) HWY_ATTR {
    constexpr int kDims = decltype(size)::value;
    hn::Vec<Wide> sum[kDims][kTiles][kVectors];
#pragma GCC unroll 16
    for (int b = 0; b < kDims; ++b)
#pragma GCC unroll 16
      for (int t = 0; t < kTiles; ++t)
#pragma GCC unroll 16
        for (int n = 0; n < kVectors; ++n)
          sum[b][t][n] = hn::Load(d, ot[t] + (first + b) * kTile + n * kLanes);
    const float* weights[kTiles];
#pragma GCC unroll 16
    for (int t = 0; t < kTiles; ++t) weights[t] = p[t] + begin * kTile;
    const float* row = v + begin * width + first;
    for (int j = begin; j < end; ++j, row += width) {
      hn::Vec<Wide> weight[kTiles][kVectors];
#pragma GCC unroll 16
      for (int t = 0; t < kTiles; ++t) {
#pragma GCC unroll 16
        for (int n = 0; n < kVectors; ++n) weight[t][n] = hn::Load(d, weights[t] + n * kLanes);
        weights[t] += kTile;
      }
#pragma GCC unroll 16
      for (int b = 0; b < kDims; ++b) {
        const auto value = hn::Set(d, row[b]);
#pragma GCC unroll 16
        for (int t = 0; t < kTiles; ++t)
#pragma GCC unroll 16
          for (int n = 0; n < kVectors; ++n)
            sum[b][t][n] = hn::MulAdd(value, weight[t][n], sum[b][t][n]);
      }
    }
#pragma GCC unroll 16
    for (int b = 0; b < kDims; ++b)
#pragma GCC unroll 16
      for (int t = 0; t < kTiles; ++t)
#pragma GCC unroll 16
        for (int n = 0; n < kVectors; ++n)
          hn::Store(sum[b][t][n], d, ot[t] + (first + b) * kTile + n * kLanes);
  });
}

HWY_NOINLINE HWY_MAYBE_UNUSED void add_values_with_gaps(const float* v, const Mask& mask,
                                                        std::int64_t width, const float* p,
                                                        float* ot) {
  const Wide d;
  for (int j = mask.begin; j < mask.end; ++j)
    for (int n = 0; n < kVectors; ++n) {
      const auto kept = kept_of(mask, j, n);
      const auto weight = hn::Load(d, p + j * kTile + n * kLanes);
      for (std::int64_t c = 0; c < width; ++c) {
        float* const at = ot + c * kTile + n * kLanes;
        const auto old = hn::Load(d, at);
        const auto sum = hn::MulAdd(hn::Set(d, v[j * width + c]), weight, old);
        hn::Store(hn::IfThenElse(kept, sum, old), d, at);
      }
    }
}

// Queries of one or two tiles as rows x[q], and their weights w[j][q].
template <int kTiles>
struct Outer {
  const float *w[kTiles], *x[kTiles];
  int queries[kTiles];
};

// rows[j][c] += sum over the queries of w[j][q] x[q][c], kKeys keys j, kVecs vectors of D from c
// on.
template <class D, int kKeys, int kVecs, int kTiles>
HWY_INLINE void add_outer(float* rows, std::int64_t first, const Outer<kTiles>& outer,
                          std::int64_t width, std::int64_t c) {
  const D d;
  constexpr std::int64_t kStep = static_cast<std::int64_t>(hn::MaxLanes(D()));
  hn::Vec<D> sum[kKeys][kVecs];
#pragma GCC unroll 16
  for (int j = 0; j < kKeys; ++j)
#pragma GCC unroll 16
    for (int n = 0; n < kVecs; ++n)
      sum[j][n] = hn::LoadU(d, rows + (first + j) * width + c + n * kStep);
  for (int t = 0; t < kTiles; ++t) {
    const float* weights = outer.w[t] + first * kTile;
    const float* x = outer.x[t] + c;
    for (int q = 0; q < outer.queries[t]; ++q, ++weights, x += width) {
      hn::Vec<D> row[kVecs];
#pragma GCC unroll 16
      for (int n = 0; n < kVecs; ++n) row[n] = hn::LoadU(d, x + n * kStep);
#pragma GCC unroll 16
      for (int j = 0; j < kKeys; ++j) {
        const auto weight = hn::Set(d, weights[j * kTile]);
#pragma GCC unroll 16
        for (int n = 0; n < kVecs; ++n) sum[j][n] = hn::MulAdd(weight, row[n], sum[j][n]);
      }
    }
  }
#pragma GCC unroll 16
  for (int j = 0; j < kKeys; ++j)
#pragma GCC unroll 16
    for (int n = 0; n < kVecs; ++n)
      hn::StoreU(sum[j][n], d, rows + (first + j) * width + c + n * kStep);
}

// rows[j] += sum over the queries of w[j][q] x[q] for j in [begin, end).
template <int kTiles>
HWY_NOINLINE HWY_MAYBE_UNUSED void add_to_keys(float* rows, int begin, int end,
                                               const Outer<kTiles>& outer, std::int64_t width) {
  constexpr int kVecs = kRegisters == 32 ? 4 : 2;
  std::int64_t c = 0;
  for (; c + kVecs * kLanes <= width; c += kVecs * kLanes)
    for_blocks<6>(begin, end, [&](auto size, std::int64_t j) HWY_ATTR {
      add_outer<Wide, decltype(size)::value, kVecs, kTiles>(rows, j, outer, width, c);
    });
  for (; c + kLanes <= width; c += kLanes)
    for_blocks<8>(begin, end, [&](auto size, std::int64_t j) HWY_ATTR {
      add_outer<Wide, decltype(size)::value, 1, kTiles>(rows, j, outer, width, c);
    });
  for (; c < width; ++c)
    for_blocks<8>(begin, end, [&](auto size, std::int64_t j) HWY_ATTR {
      add_outer<One, decltype(size)::value, 1, kTiles>(rows, j, outer, width, c);
    });
}

HWY_NOINLINE HWY_MAYBE_UNUSED void add_to_keys_with_gaps(float* rows, const Mask& mask,
                                                         const float* w, int queries,
                                                         const float* x, std::int64_t width) {
  const One d;
  for (int j = mask.begin; j < mask.end; ++j)
    for (int q = 0; q < queries; ++q) {
      if (!mask.keeps(j, q)) continue;
      const auto weight = hn::Set(d, w[j * kTile + q]);
      for (std::int64_t c = 0; c < width; ++c) {
        float* const at = rows + j * width + c;
        hn::StoreU(hn::MulAdd(weight, hn::LoadU(d, x + q * width + c), hn::LoadU(d, at)), d, at);
      }
    }
}

}  // namespace
}  // namespace longstride::ops::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif
