#include "bench/fit.h"

#include <gtest/gtest.h>

#include <cmath>

#include "longstride/error.h"

namespace longstride {
namespace {

BenchRow row(const std::string& series, double size, double seconds) {
  BenchRow r;
  r.series = series;
  r.size = size;
  r.seconds = seconds;
  return r;
}

TEST(Fit, FindsTheExponentOfEachSeries) {
  std::vector<BenchRow> rows;
  for (const double n : {1024.0, 2048.0, 8192.0, 65536.0}) {
    rows.push_back(row("three halves", n, 3e-9 * std::pow(n, 1.5)));
    rows.push_back(row("square", n, 7e-12 * n * n));
  }
  rows.push_back(row("alone", 10, 1));
  rows.push_back(row("no size", 0, 1));
  const auto fits = bench::fit_exponents(rows);
  ASSERT_EQ(fits.size(), 2u);
  EXPECT_EQ(fits[0].series, "square");
  EXPECT_NEAR(fits[0].exponent, 2, 1e-9);
  EXPECT_NEAR(fits[1].exponent, 1.5, 1e-9);
}

TEST(BenchAttention, CountsTheWorkOfThePattern) {
  const BenchReport report = bench_attention(64, 128);
  ASSERT_EQ(report.rows.size(), 4u);
  EXPECT_GT(report.peak_flops, 0);
  EXPECT_GT(report.peak_bytes, 0);
  // Dense, 64 positions, 4 heads of 64: 2080 pairs a head; forward 2 products, backward 5.
  EXPECT_EQ(report.rows[1].series, "attention dense");
  EXPECT_EQ(report.rows[1].flops, 4.0 * 2080 * (2 * 2 * 64 + 2 * 5 * 64));
  // strided(8) against the definition.
  double pairs = 0;
  for (int i = 0; i < 64; ++i)
    for (int j = 0; j <= i; ++j) pairs += i - j < 8 || (i - j) % 8 == 0;
  EXPECT_EQ(report.rows[0].flops, 4 * pairs * (2 * 2 * 64 + 2 * 5 * 64));
  for (const BenchRow& r : report.rows) EXPECT_GT(r.seconds, 0) << r.series;
}

TEST(BenchAttention, RefusesLengthsThatMakeNoSense) {
  EXPECT_THROW(bench_attention(0, 10), Error);
  EXPECT_THROW(bench_attention(16, 8), Error);
  EXPECT_THROW(bench_attention(16, std::int64_t{1} << 40), Error);
}

TEST(BenchOps, TimesEveryOperation) {
  const BenchReport report = bench_ops();
  EXPECT_GE(report.rows.size(), 12u);
  for (const BenchRow& r : report.rows) {
    EXPECT_GT(r.seconds, 0) << r.series;
    EXPECT_GT(r.bytes, 0) << r.series;
  }
}

}  // namespace
}  // namespace longstride
