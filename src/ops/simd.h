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
#include <type_traits>

#include "hwy/highway.h"
#include "tensor/bf16.h"

HWY_BEFORE_NAMESPACE();
namespace longstride::ops::HWY_NAMESPACE {

namespace hn = hwy::HWY_NAMESPACE;

using Floats = hn::ScalableTag<float>;
using FloatVec = hn::Vec<Floats>;

// True where masked loads and stores leave what is masked off untouched, without faults. (Highway
// promises it for AVX-512 only; for 32-bit lanes AVX2 has it as well.)
inline constexpr bool kSafeMasks = HWY_TARGET == HWY_AVX2 || !HWY_MEM_OPS_MIGHT_FAULT;

inline std::int64_t float_lanes() { return static_cast<std::int64_t>(hn::Lanes(Floats())); }

using Bf16Lanes = hn::Rebind<std::uint16_t, Floats>;  // as many lanes, half as wide

inline FloatVec widen(hn::Vec<Bf16Lanes> bits) {
  const hn::RebindToUnsigned<Floats> du;
  return hn::BitCast(Floats(), hn::ShiftLeft<16>(hn::PromoteTo(du, bits)));
}

// The rounding of tensor/bf16.h. (Instructions for it take denormals for zero.)
inline hn::Vec<Bf16Lanes> narrow(FloatVec v) {
  const hn::RebindToUnsigned<Floats> du;
  const hn::RebindToSigned<Floats> di;
  const auto u = hn::BitCast(du, v);
  const auto odd = hn::And(hn::ShiftRight<16>(u), hn::Set(du, 1));
  const auto near = hn::Add(u, hn::Add(odd, hn::Set(du, 0x7fff)));
  const auto quiet = hn::Or(u, hn::Set(du, 0x00400000));
  const auto wide = hn::IfThenElse(hn::RebindMask(du, hn::IsNaN(v)), quiet, near);
  return hn::DemoteTo(Bf16Lanes(), hn::BitCast(di, hn::ShiftRight<16>(wide)));
}

// Access to a whole vector of floats, or of bf16 as floats.
struct Whole {
  FloatVec load(const float* p) const { return hn::LoadU(Floats(), p); }
  FloatVec load(const bf16* p) const { return widen(hn::LoadU(Bf16Lanes(), &p->bits)); }
  void store(FloatVec v, float* p) const { hn::StoreU(v, Floats(), p); }
  void store(FloatVec v, bf16* p) const { hn::StoreU(narrow(v), Bf16Lanes(), &p->bits); }
  FloatVec keep(FloatVec v) const { return v; }  // lanes beyond the end as zeros
};

// Access to the first n lanes; the others read as zero.
struct Part {
  std::int64_t n;

  FloatVec load(const float* p) const {
    const Floats d;
    if constexpr (kSafeMasks) return hn::MaskedLoad(mask(), d, p);
    HWY_ALIGN float lanes[hn::MaxLanes(d)] = {};
    std::memcpy(lanes, p, bytes<float>());
    return hn::Load(d, lanes);
  }
  FloatVec load(const bf16* p) const {
    HWY_ALIGN std::uint16_t lanes[hn::MaxLanes(Bf16Lanes())] = {};
    std::memcpy(lanes, p, bytes<bf16>());
    return widen(hn::Load(Bf16Lanes(), lanes));
  }
  void store(FloatVec v, float* p) const {
    const Floats d;
    if constexpr (kSafeMasks) return hn::BlendedStore(v, mask(), d, p);
    HWY_ALIGN float lanes[hn::MaxLanes(d)];
    hn::Store(v, d, lanes);
    std::memcpy(p, lanes, bytes<float>());
  }
  void store(FloatVec v, bf16* p) const {
    HWY_ALIGN std::uint16_t lanes[hn::MaxLanes(Bf16Lanes())];
    hn::Store(narrow(v), Bf16Lanes(), lanes);
    std::memcpy(static_cast<void*>(p), lanes, bytes<bf16>());
  }
  FloatVec keep(FloatVec v) const { return hn::IfThenElseZero(mask(), v); }

 private:
  hn::Mask<Floats> mask() const { return hn::FirstN(Floats(), static_cast<std::size_t>(n)); }
  template <class T>
  std::size_t bytes() const {
    return static_cast<std::size_t>(n) * sizeof(T);
  }
};

// body(i, lanes) for the vectors that cover [0, n); `lanes` is Whole or Part.
template <class Body>
void for_vectors(std::int64_t n, const Body& body) {
  const std::int64_t step = float_lanes();
  std::int64_t i = 0;
  for (; i + step <= n; i += step) body(i, Whole{});
  if (i < n) body(i, Part{n - i});
}

// body(i, lanes, k) for the groups of k vectors that cover [0, n), k = kVectors as long as there
// are as many, then 1; as a type, so that bodies can have arrays of vectors.
template <int kVectors, class Body>
void for_groups(std::int64_t n, const Body& body) {
  const std::int64_t step = float_lanes();
  std::int64_t i = 0;
  for (; i + kVectors * step <= n; i += kVectors * step)
    body(i, Whole{}, std::integral_constant<int, kVectors>());
  for (; i + step <= n; i += step) body(i, Whole{}, std::integral_constant<int, 1>());
  if (i < n) body(i, Part{n - i}, std::integral_constant<int, 1>());
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

// max(x, low) and min(x, high) that keep a NaN: x86 returns its second operand then, NEON the NaN.
#if HWY_ARCH_X86 || HWY_ARCH_ARM_A64
inline constexpr bool kSecondNaNStays = HWY_TARGET != HWY_SCALAR && HWY_TARGET != HWY_EMU128;
#else
inline constexpr bool kSecondNaNStays = false;
#endif
template <class D, class V = hn::Vec<D>>
HWY_INLINE V at_least(D d, float low, V x) {
  if constexpr (kSecondNaNStays) return hn::Max(hn::Set(d, low), x);
  return hn::IfThenElse(hn::Lt(x, hn::Set(d, low)), hn::Set(d, low), x);
}
template <class D, class V = hn::Vec<D>>
HWY_INLINE V at_most(D d, float high, V x) {
  if constexpr (kSecondNaNStays) return hn::Min(hn::Set(d, high), x);
  return hn::IfThenElse(hn::Gt(x, hn::Set(d, high)), hn::Set(d, high), x);
}

// y[k] = e^x[k] for x <= 88: within 2 ulp, exactly 1 at 0, exactly 0 from about -87 down, no
// denormals, NaN for NaN. 13 instructions a vector, no table and no branch: x = n ln 2 + r,
// |r| <= ln(2) / 2, and e^x = (2 e^r) 2^(n - 1), so that the smallest power is 0 while the smallest
// product is normal. They depend on each other, for some 45 cycles: hence several vectors at a
// time.
template <int kVectors, class D, class V = hn::Vec<D>>
HWY_INLINE void exp(D d, const V (&x)[kVectors], V (&y)[kVectors]) {
  const hn::RebindToUnsigned<D> du;
  // A sum this large has no bits behind the point: it is rounded, and its last bits are n + 126,
  // which the shift below makes the exponent of 2^(n - 1).
  const V shifter = hn::Set(d, 0x1.8p23f + 126);
  V sum[kVectors], r[kVectors];
#pragma GCC unroll 16
  for (int k = 0; k < kVectors; ++k) {
    r[k] = at_least(d, -87.3f, x[k]);
    sum[k] = hn::MulAdd(r[k], hn::Set(d, 0x1.715476p0f), shifter);
  }
  // ln 2 in two pieces, the first short enough for n times it to be exact.
#pragma GCC unroll 16
  for (int k = 0; k < kVectors; ++k) {
    const V n = hn::Sub(sum[k], shifter);
    r[k] = hn::MulAdd(n, hn::Set(d, -0.693359375f), r[k]);
    r[k] = hn::MulAdd(n, hn::Set(d, 2.12194440e-4f), r[k]);
    y[k] = hn::Set(d, 0x1.6a2318p-9f);
  }
  // The polynomial 2 + 2 r + ... of smallest relative error (2^-28) on that interval.
  const auto next = [&](float coefficient) HWY_ATTR {
#pragma GCC unroll 16
    for (int k = 0; k < kVectors; ++k) y[k] = hn::MulAdd(y[k], r[k], hn::Set(d, coefficient));
  };
  next(0x1.123a8ep-6f);
  next(0x1.5558f6p-4f);
  next(0x1.555490p-2f);
  next(0x1.fffffcp-1f);
  next(2.0f);
  next(2.0f);
#pragma GCC unroll 16
  for (int k = 0; k < kVectors; ++k)
    y[k] = hn::Mul(y[k], hn::BitCast(d, hn::ShiftLeft<23>(hn::BitCast(du, sum[k]))));
}

template <class D, class V = hn::Vec<D>>
HWY_INLINE V exp(D d, V x) {
  const V in[1] = {x};
  V out[1];
  exp(d, in, out);
  return out[0];
}

}  // namespace longstride::ops::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // LONGSTRIDE_OPS_SIMD_H_
