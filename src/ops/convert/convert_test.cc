#include "ops/convert/convert.h"

#include <gtest/gtest.h>

#include <bit>
#include <cmath>

#include "ops/convert/bf16_test_util.h"

namespace longstride::ops {

namespace {

using test::error_of, test::for_each_target, test::GuardedBf16, test::same_bits, test::view;

// The 2^16 floats whose lower half is `low`.
std::vector<float> floats_ending_in(std::uint32_t low) {
  std::vector<float> values;
  for (std::uint32_t high = 0; high < 0x10000; ++high)
    values.push_back(std::bit_cast<float>(high << 16 | low));
  return values;
}

// By definition, without the tricks on bits: no other bf16 value is nearer, and none with an even
// last bit is as near. (Numbers beyond the range would round to 2^128: infinity.)
bool is_nearest(float x, bf16 got) {
  if (std::isnan(x)) return std::isnan(static_cast<float>(got));
  const auto value = [](std::uint16_t bits) {
    if ((bits & 0x7fff) == 0x7f80) return bits & 0x8000 ? -0x1p128 : 0x1p128;
    bf16 b;
    b.bits = bits;
    return static_cast<double>(static_cast<float>(b));
  };
  if (std::isinf(x)) return static_cast<float>(got) == x;
  if (std::signbit(x) != (got.bits >> 15 != 0)) return false;
  const double off = std::abs(value(got.bits) - static_cast<double>(x));
  for (const int side : {-1, 1}) {
    const auto other = static_cast<std::uint16_t>(got.bits + side);
    const bool exists = (got.bits & 0x7fff) + side >= 0 && (got.bits & 0x7fff) + side <= 0x7f80;
    if (!exists) continue;
    const double other_off = std::abs(value(other) - static_cast<double>(x));
    if (other_off < off || (other_off == off && got.bits % 2 == 1)) return false;
  }
  return true;
}

TEST(Convert, EveryBf16ValueComesBack) {
  for_each_target([] {
    const std::vector<float> from = floats_ending_in(0);
    GuardedBf16 to(0x10000);
    convert(view(from), to.vector());
    for (std::uint32_t bits = 0; bits < 0x10000; ++bits) {
      const bool nan = (bits & 0x7fff) > 0x7f80;
      EXPECT_EQ(to.data()[bits].bits, nan ? bits | 0x40 : bits);  // a NaN becomes quiet
    }
    EXPECT_TRUE(to.untouched_behind());
  });
}

// With every upper half: ties, their neighbours, what is just above and below a bf16 value. This
// has all denormals' neighbourhoods, the way to infinity, and NaNs with bits in the lower half
// only.
TEST(Convert, RoundsToNearestEven) {
  for_each_target([] {
    for (const std::uint32_t low : {0x0001u, 0x7fffu, 0x8000u, 0x8001u, 0xffffu}) {
      const std::vector<float> from = floats_ending_in(low);
      GuardedBf16 to(0x10000);
      convert(view(from), to.vector());
      for (std::size_t i = 0; i < from.size(); ++i)
        ASSERT_TRUE(is_nearest(from[i], to.data()[i])) << std::hexfloat << from[i];
    }
  });
}

TEST(Convert, RandomBitsAndSizes) {
  for_each_target([] {
    for (const std::int64_t size : {0, 1, 2, 7, 8, 15, 17, 31, 33, 1000, 70001}) {
      std::vector<float> from;
      for (std::int64_t i = 0; i < size; ++i)
        from.push_back(
            std::bit_cast<float>(random4(9, Stream::test, 0, static_cast<std::uint64_t>(i))[0]));
      GuardedBf16 to(size);
      convert(view(std::as_const(from)), to.vector());
      for (std::size_t i = 0; i < from.size(); ++i) {
        ASSERT_TRUE(is_nearest(from[i], to.data()[i])) << std::hexfloat << from[i];
        ASSERT_EQ(to.data()[i].bits, bf16(from[i]).bits) << std::hexfloat << from[i];
      }
      EXPECT_TRUE(to.untouched_behind()) << size;
    }
  });
}

TEST(Convert, SameBitsForAnyThreads) {
  test::expect_same_for_any_threads([] {
    const auto from = test::random_normal<float>(100003, 1);
    GuardedBf16 to(100003);
    convert(view(from), to.vector());
    return to.floats();
  });
}

TEST(Convert, RejectsWrongSizes) {
  const std::vector<float> from(5);
  GuardedBf16 to(4);
  EXPECT_EQ(error_of([&] { convert(view(from), to.vector()); }),
            "convert: to has 4 entries, want 5");
}

}  // namespace

}  // namespace longstride::ops
