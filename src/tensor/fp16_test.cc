#include "tensor/fp16.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>

namespace longstride {
namespace {

TEST(Fp16, EveryValueComesBack) {
  for (std::uint32_t bits = 0; bits < 65536; ++bits) {
    fp16 x;
    x.bits = static_cast<std::uint16_t>(bits);
    const auto value = static_cast<float>(x);
    const fp16 back(value);
    if (std::isnan(value))
      EXPECT_TRUE(std::isnan(static_cast<float>(back)));
    else
      EXPECT_EQ(back.bits, bits);
  }
}

TEST(Fp16, RoundsToTheNearestEven) {
  for (std::uint32_t bits = 0; bits < 0x7bff; ++bits) {
    fp16 low, high;
    low.bits = static_cast<std::uint16_t>(bits);
    high.bits = static_cast<std::uint16_t>(bits + 1);
    const float a = static_cast<float>(low), b = static_cast<float>(high);
    const float half = a + (b - a) / 2;  // exact in float
    EXPECT_EQ(fp16(half).bits, bits % 2 == 0 ? bits : bits + 1);
    EXPECT_EQ(fp16(std::nextafter(half, a)).bits, bits);
    EXPECT_EQ(fp16(std::nextafter(half, b)).bits, bits + 1);
  }
  EXPECT_EQ(fp16(65519.99f).bits, 0x7bff);
  EXPECT_EQ(fp16(65520.0f).bits, 0x7c00);
  EXPECT_EQ(fp16(-std::numeric_limits<float>::infinity()).bits, 0xfc00);
}

}  // namespace
}  // namespace longstride
