// Moves between tensors, in place, and the scratch of the attention kernels: rows become packed
// float rows, so float32 and bfloat16 share the kernels, and rows that lie a power of two apart
// (H d values, in a column lane l H d) do not fight for the same few sets of a cache.
#if defined(LONGSTRIDE_OPS_ATTENTION_PACK_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef LONGSTRIDE_OPS_ATTENTION_PACK_INL_H_
#undef LONGSTRIDE_OPS_ATTENTION_PACK_INL_H_
#else
#define LONGSTRIDE_OPS_ATTENTION_PACK_INL_H_
#endif

#include <hwy/cache_control.h>

#include "ops/attention/simd-inl.h"
#include "tensor/bf16.h"

HWY_BEFORE_NAMESPACE();
namespace longstride::ops::HWY_NAMESPACE {
namespace {

template <class D>
HWY_INLINE hn::Vec<D> load(D d, const float* from) {
  return hn::LoadU(d, from);
}

template <class D>
HWY_INLINE hn::Vec<D> load(D d, const bf16* from) {
  const hn::Rebind<std::uint16_t, D> narrow;
  const hn::RebindToUnsigned<D> wide;
  return hn::BitCast(d, hn::ShiftLeft<16>(hn::PromoteTo(wide, hn::LoadU(narrow, &from->bits))));
}

template <class D>
HWY_INLINE void store(hn::Vec<D> x, [[maybe_unused]] D d, float* to) {
  hn::StoreU(x, d, to);
}

// As bf16(float).
template <class D>
HWY_INLINE void store(hn::Vec<D> x, [[maybe_unused]] D d, bf16* to) {
  const hn::Rebind<std::uint16_t, D> narrow;
  const hn::RebindToUnsigned<D> du;
  const hn::RebindToSigned<D> di;
  const auto u = hn::BitCast(du, x);
  const auto odd = hn::And(hn::ShiftRight<16>(u), hn::Set(du, 1u));
  const auto nearest = hn::Add(hn::Add(u, hn::Set(du, 0x7fffu)), odd);
  const auto quiet = hn::Or(u, hn::Set(du, 0x00400000u));
  const auto nan = hn::RebindMask(du, hn::Ne(x, x));
  const auto upper = hn::ShiftRight<16>(hn::IfThenElse(nan, quiet, nearest));
  hn::StoreU(hn::DemoteTo(narrow, hn::BitCast(di, upper)), narrow, &to->bits);
}

// Stays zero as long as all values seen are finite.
struct Finite {
  hn::Vec<Wide> wide;
  hn::Vec<One> one;

  HWY_INLINE bool all() const {
    return hn::AllTrue(Wide(), hn::Eq(wide, hn::Zero(Wide()))) && hn::GetLane(one) == 0.0f;
  }
};

// to[c] = from[c]
template <class A>
HWY_INLINE void pack_row(const A* from, std::int64_t width, float* to, Finite& finite) {
  const Wide d;
  const One one;
  std::int64_t c = 0;
  for (; c + kLanes <= width; c += kLanes) {
    const auto x = load(d, from + c);
    finite.wide = hn::MulAdd(x, hn::Zero(d), finite.wide);
    hn::StoreU(x, d, to + c);
  }
  for (; c < width; ++c) {
    const auto x = load(one, from + c);
    finite.one = hn::MulAdd(x, hn::Zero(one), finite.one);
    hn::StoreU(x, one, to + c);
  }
}

// Rows that are asked for before they are read: enough for memory to work on several, few enough
// for the sets of a cache that rows a power of two apart share.
constexpr int kRowsAhead = 6;

// Asks for the cache lines of a row that will be read.
template <class A>
HWY_INLINE void prefetch_row(const A* row, std::int64_t width) {
  constexpr std::int64_t kLine = 64 / static_cast<std::int64_t>(sizeof(A));
  for (std::int64_t c = 0; c < width; c += kLine) hwy::Prefetch(row + c);
}

// The rows of a chunk's keys, packed [kKeyChunk][width]; zeros beside them, where kernels that take
// keys two by two may read. False: not all values are finite.
template <class A>
HWY_NOINLINE bool pack_keys(const Heads<const A>& x, std::int64_t batch, std::int64_t head,
                            const Chunk& chunk, float* to) {
  Finite finite{hn::Zero(Wide()), hn::Zero(One())};
  for (int j = chunk.begin; j < chunk.end; ++j) {
    if (j + kRowsAhead < chunk.end)
      prefetch_row(x.at(batch, chunk.position[static_cast<std::size_t>(j + kRowsAhead)], head),
                   x.width);
    pack_row(x.at(batch, chunk.position[static_cast<std::size_t>(j)], head), x.width,
             to + j * x.width, finite);
  }
  if (chunk.begin % 2 != 0) std::fill_n(to + (chunk.begin - 1) * x.width, x.width, 0.0f);
  if (chunk.end % 2 != 0) std::fill_n(to + chunk.end * x.width, x.width, 0.0f);
  return finite.all();
}

// The queries of a tile as rows [kTile][width]. False: not all values are finite.
template <class A>
HWY_INLINE bool pack_queries(const Heads<const A>& x, std::int64_t batch, std::int64_t head,
                             const Tile& tile, float* to) {
  Finite finite{hn::Zero(Wide()), hn::Zero(One())};
  for (int r = 0; r < tile.rows; ++r) {
    if (r + kRowsAhead < tile.rows)
      prefetch_row(x.at(batch, tile.query[static_cast<std::size_t>(r + kRowsAhead)], head),
                   x.width);
    pack_row(x.at(batch, tile.query[static_cast<std::size_t>(r)], head), x.width, to + r * x.width,
             finite);
  }
  return finite.all();
}

}  // namespace
}  // namespace longstride::ops::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif
