// IEEE binary16. Storage only: arithmetic is done in float.
#pragma once

#include <bit>
#include <cstdint>

#include "tensor/bf16.h"

namespace longstride {

struct fp16 {
  std::uint16_t bits = 0;

  fp16() = default;
  // To nearest, ties to even; beyond 65504 + half a step: infinite; a NaN stays a NaN.
  explicit fp16(float x) {
    const auto u = std::bit_cast<std::uint32_t>(x);
    const auto sign = static_cast<std::uint16_t>(u >> 16 & 0x8000u);
    const std::uint32_t a = u & 0x7fffffffu;
    if (a > 0x7f800000u) {
      bits = sign | 0x7e00u;
    } else if (a >= 0x47800000u) {  // 2^16
      bits = sign | 0x7c00u;
    } else if (a < 0x38800000u) {                           // below 2^-14: a multiple of 2^-24
      const float scaled = std::bit_cast<float>(a) + 0.5f;  // the last place of [0.5, 1) is 2^-24
      bits =
          static_cast<std::uint16_t>(sign | (std::bit_cast<std::uint32_t>(scaled) - 0x3f000000u));
    } else {
      const std::uint32_t rounded = a - 0x38000000u + 0xfffu + (a >> 13 & 1u);
      bits = static_cast<std::uint16_t>(sign | rounded >> 13);
    }
  }
  explicit operator float() const {
    const std::uint32_t sign = static_cast<std::uint32_t>(bits & 0x8000u) << 16;
    const std::uint32_t exponent = bits >> 10 & 31u, fraction = bits & 0x3ffu;
    if (exponent == 31) return std::bit_cast<float>(sign | 0x7f800000u | fraction << 13);
    if (exponent == 0) {
      const float magnitude = static_cast<float>(fraction) * 0x1p-24f;
      return std::bit_cast<float>(sign | std::bit_cast<std::uint32_t>(magnitude));
    }
    return std::bit_cast<float>(sign | (exponent + 112) << 23 | fraction << 13);
  }
};

template <>
struct AccumulatedOf<fp16> {
  using type = float;
};

}  // namespace longstride
