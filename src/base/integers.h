// Arithmetic of sizes.
#pragma once

#include <cstdint>

namespace longstride {

// a / b, rounded up, without overflow. a >= 0, b > 0.
constexpr std::int64_t ceil_div(std::int64_t a, std::int64_t b) { return a / b + (a % b != 0); }

}  // namespace longstride
