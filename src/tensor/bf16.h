// bfloat16: the upper half of a float. Storage only: arithmetic is done in float.
#pragma once

#include <bit>
#include <cstdint>

namespace longstride {

struct bf16 {
  std::uint16_t bits = 0;

  bf16() = default;
  // To nearest, ties to even; a NaN stays a NaN, a value beyond the range becomes infinite.
  explicit bf16(float x) {
    const auto u = std::bit_cast<std::uint32_t>(x);
    const bool nan = (u & 0x7fffffffu) > 0x7f800000u;
    bits = static_cast<std::uint16_t>((nan ? u | 0x00400000u : u + 0x7fffu + (u >> 16 & 1)) >> 16);
  }
  explicit operator float() const {
    return std::bit_cast<float>(static_cast<std::uint32_t>(bits) << 16);
  }
};

// What sums over values of type A are kept in.
template <class A>
struct AccumulatedOf {
  using type = A;
};
template <>
struct AccumulatedOf<bf16> {
  using type = float;
};
template <class A>
using Accumulated = typename AccumulatedOf<A>::type;

}  // namespace longstride
