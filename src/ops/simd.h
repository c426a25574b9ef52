// Highway helpers of the CPU kernels. Included once per instruction set (hence no #pragma once),
// after hwy/foreach_target.h.
//
// What these keep: a partial vector goes through the same instructions as a whole one, so an
// element's bits do not depend on its place; a sum over n terms has one order, a function of n.
#if defined(LONGSTRIDE_OPS_SIMD_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef LONGSTRIDE_OPS_SIMD_H_
#undef LONGSTRIDE_OPS_SIMD_H_
#else
#define LONGSTRIDE_OPS_SIMD_H_
#endif

#include <cstdint>
#include <cstring>

#include "hwy/contrib/math/math-inl.h"
#include "hwy/highway.h"

HWY_BEFORE_NAMESPACE();
namespace longstride::ops::HWY_NAMESPACE {

namespace hn = hwy::HWY_NAMESPACE;

using Floats = hn::ScalableTag<float>;
using FloatVec = hn::Vec<Floats>;

// True where masked loads and stores leave what is masked off untouched, without faults. (Highway
// promises it for AVX-512 only; for 32-bit lanes AVX2 has it as well.)
inline constexpr bool kSafeMasks = HWY_TARGET == HWY_AVX2 || !HWY_MEM_OPS_MIGHT_FAULT;

inline std::int64_t float_lanes() { return static_cast<std::int64_t>(hn::Lanes(Floats())); }

// Access to a whole vector of floats.
struct Whole {
  FloatVec load(const float* p) const { return hn::LoadU(Floats(), p); }
  void store(FloatVec v, float* p) const { hn::StoreU(v, Floats(), p); }
  FloatVec keep(FloatVec v) const { return v; }  // lanes beyond the end as zeros
};

// Access to the first n lanes; the others read as zero.
struct Part {
  std::int64_t n;

  FloatVec load(const float* p) const {
    const Floats d;
    if constexpr (kSafeMasks) return hn::MaskedLoad(mask(), d, p);
    HWY_ALIGN float lanes[hn::MaxLanes(d)] = {};
    std::memcpy(lanes, p, bytes());
    return hn::Load(d, lanes);
  }
  void store(FloatVec v, float* p) const {
    const Floats d;
    if constexpr (kSafeMasks) return hn::BlendedStore(v, mask(), d, p);
    HWY_ALIGN float lanes[hn::MaxLanes(d)];
    hn::Store(v, d, lanes);
    std::memcpy(p, lanes, bytes());
  }
  FloatVec keep(FloatVec v) const { return hn::IfThenElseZero(mask(), v); }

 private:
  hn::Mask<Floats> mask() const { return hn::FirstN(Floats(), static_cast<std::size_t>(n)); }
  std::size_t bytes() const { return static_cast<std::size_t>(n) * sizeof(float); }
};

// body(i, lanes) for the vectors that cover [0, n); `lanes` is Whole or Part.
template <class Body>
void for_vectors(std::int64_t n, const Body& body) {
  const std::int64_t step = float_lanes();
  std::int64_t i = 0;
  for (; i + step <= n; i += step) body(i, Whole{});
  if (i < n) body(i, Part{n - i});
}

// sum over [0, n) of the lanes of term(i, lanes), four chains wide.
template <class Term>
float sum_of(std::int64_t n, const Term& term) {
  const Floats d;
  const std::int64_t step = float_lanes();
  FloatVec s0 = hn::Zero(d), s1 = s0, s2 = s0, s3 = s0;
  std::int64_t i = 0;
  for (; i + 4 * step <= n; i += 4 * step) {
    s0 = hn::Add(s0, term(i, Whole{}));
    s1 = hn::Add(s1, term(i + step, Whole{}));
    s2 = hn::Add(s2, term(i + 2 * step, Whole{}));
    s3 = hn::Add(s3, term(i + 3 * step, Whole{}));
  }
  for (; i + step <= n; i += step) s0 = hn::Add(s0, term(i, Whole{}));
  if (i < n) s1 = hn::Add(s1, Part{n - i}.keep(term(i, Part{n - i})));
  return hn::GetLane(hn::SumOfLanes(d, hn::Add(hn::Add(s0, s1), hn::Add(s2, s3))));
}

// e^x for x <= 0, NaN for NaN (Highway's own returns 0 there, which would hide a broken model).
inline FloatVec exp_negative(FloatVec x) {
  const Floats d;
  return hn::IfThenElse(hn::IsNaN(x), x, hn::Exp(d, x));
}

}  // namespace longstride::ops::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // LONGSTRIDE_OPS_SIMD_H_
