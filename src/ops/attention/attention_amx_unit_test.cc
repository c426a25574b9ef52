// The tile unit of the processor, function by function, against the emulation; the emulation
// against the formula of the instruction.
#include "ops/attention/attention_amx_unit_test.h"

#include <gtest/gtest.h>

#include "ops/attention/attention_amx.h"
#include "ops/test_util.h"

namespace longstride::ops::cpu {

namespace {

UnitInputs inputs() {
  UnitInputs in;
  const auto x = test::random_normal<float>(kUnitValues, 1, 3),
             y = test::random_normal<float>(kUnitValues, 2, 40);
  for (int i = 0; i < kUnitValues; ++i) {
    in.x[i] = x[static_cast<std::size_t>(i)];
    in.y[i] = y[static_cast<std::size_t>(i)];
    in.a[i] = bf16(in.x[i]);
    in.b[i] = bf16(in.y[i]);
  }
  in.b[25].bits = 0xff80;
  // 2^x: bounds of the polynomial, of float, and no numbers.
  const float infinity = std::numeric_limits<float>::infinity();
  const float corners[] = {0,    -0.0f, 1,      -1,  -1e-9f,   0.99999994f, -126,          -127.5f,
                           -151, -1e9f, 127.9f, 128, infinity, -infinity,   std::nanf(""), 0.5f};
  std::copy(std::begin(corners), std::end(corners), in.y + 7 * kSide);
  for (int i = 0; i < kSide; ++i) {
    in.from[i] = i % 5;
    in.to[i] = (i * 7) % 9;
  }
  return in;
}

UnitOutputs outputs_of(void (*run)(const UnitInputs&, UnitOutputs&), const UnitInputs& in) {
  static_assert(std::is_trivially_copyable_v<UnitOutputs>);
  UnitOutputs out;
  std::memset(static_cast<void*>(&out), 0, sizeof(out));
  run(in, out);
  return out;
}

float value(const TileData& t, int r, int c) {
  float x;
  std::memcpy(&x, t.row(r) + 4 * c, 4);
  return x;
}

TEST(TileUnitTest, EmulatedProductIsThatOfTheMatrices) {
  const UnitInputs in = inputs();
  const UnitOutputs out = outputs_of(use_unit<EmulatedUnit>, in);
  for (int m = 0; m < kSide; ++m)
    for (int n = 0; n < kSide; ++n) {
      double sum = 0, size = 0;
      for (int k = 0; k < kPairs; ++k) {
        // Column n of the right operand: pairs of its row k / 2.
        const double a = static_cast<float>(in.a[16 * m + k]);
        const double b = static_cast<float>(in.a[15 * (k / 2) + 7 + 2 * n + k % 2]);
        sum += a * b;
        size += std::abs(a * b);
      }
      EXPECT_NEAR(value(out.words[6], m, n), sum, 1e-6 * size) << m << ", " << n;
      EXPECT_NEAR(value(out.words[3], m, n), 2 * sum + in.x[kSide * m + n], 2e-6 * size + 1e-6);
    }
}

TEST(TileUnitTest, EmulatedPowersOfTwoAreAccurate) {
  const UnitOutputs out = outputs_of(use_unit<EmulatedUnit>, inputs());
  const UnitInputs in = inputs();
  for (int i = 0; i < 8 * kSide; ++i) {
    const double want = std::exp2(static_cast<double>(in.y[i]));
    const float got = out.exp2[i / kSide][i % kSide];
    if (std::isnan(want)) {
      EXPECT_TRUE(std::isnan(got)) << in.y[i];
    } else if (want > 3e38) {
      EXPECT_GT(got, 3e38f) << in.y[i];
    } else {
      EXPECT_NEAR(got, want, 3e-7 * want + 1e-44) << in.y[i];
    }
  }
}

TEST(TileUnitTest, ProcessorDoesWhatTheEmulationDoes) {
  if (!amx_available()) GTEST_SKIP() << "no AMX here";
  const UnitInputs in = inputs();
  const UnitOutputs want = outputs_of(use_unit<EmulatedUnit>, in),
                    got = outputs_of(use_amx_unit, in);
  for (int i = 0; i < 64; ++i)
    EXPECT_EQ(std::memcmp(got.exact[i], want.exact[i], sizeof(want.exact[i])), 0) << "exact " << i;
  for (int i = 0; i < kSide; ++i) EXPECT_NEAR(got.fused[i], want.fused[i], 1e-4f);
  for (int i = 0; i < 8 * kSide; ++i) {
    const float g = got.exp2[i / kSide][i % kSide], w = want.exp2[i / kSide][i % kSide];
    if (std::isnan(w)) {
      EXPECT_TRUE(std::isnan(g)) << in.y[i];
    } else if (g != w) {
      EXPECT_NEAR(g, w, 3e-7f * w + 1e-44f) << in.y[i];
    }
  }
  for (int i : {0, 1, 2, 4, 5})
    EXPECT_EQ(std::memcmp(&got.words[i], &want.words[i], sizeof(TileData)), 0) << "words " << i;
  for (int i : {3, 6})
    for (int m = 0; m < kSide; ++m)
      for (int n = 0; n < kSide; ++n)
        EXPECT_NEAR(value(got.words[i], m, n), value(want.words[i], m, n), 1e-3f) << i;
  for (int i = 0; i < 16; ++i) EXPECT_EQ(got.bits[i], want.bits[i]) << "bits " << i;
  for (int i = 0; i < 2 * kSide; ++i)
    EXPECT_EQ(got.narrow[i / kSide][i % kSide].bits, want.narrow[i / kSide][i % kSide].bits) << i;
}

}  // namespace

}  // namespace longstride::ops::cpu
