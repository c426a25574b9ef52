#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>

#include "bench/tile_pairs.h"
#include "longstride/error.h"
#include "longstride/pattern.h"
#include "longstride/runtime.h"

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
    rows.push_back(row("square", n, 1e-9 * n));
    rows.back().bf16 = true;
  }
  rows.push_back(row("alone", 10, 1));
  rows.push_back(row("no size", 0, 1));
  const auto fits = fit_exponents(rows);
  ASSERT_EQ(fits.size(), 3u);
  EXPECT_EQ(fits[0].series, "square");
  EXPECT_NEAR(fits[0].exponent, 2, 1e-9);
  EXPECT_EQ(fits[1].series, "square, bf16");
  EXPECT_NEAR(fits[1].exponent, 1, 1e-9);
  EXPECT_NEAR(fits[2].exponent, 1.5, 1e-9);
}

TEST(Floor, IsTheLargerOfWorkAndTrafficInThePrecisionOfTheRow) {
  BenchReport report;
  report.peak_flops = 100;
  report.peak_bf16_flops = 400;
  report.peak_bytes = 10;
  BenchRow r;
  r.flops = 800;
  r.bytes = 40;
  EXPECT_EQ(floor_of(r, report).seconds, 8);
  EXPECT_FALSE(floor_of(r, report).memory_binds);
  r.bf16 = true;
  EXPECT_EQ(floor_of(r, report).seconds, 4);
  EXPECT_TRUE(floor_of(r, report).memory_binds);
}

std::int64_t tiles_of(const std::string& spec, std::int64_t length) {
  return bench::tile_pairs(AttentionPlan(parse_pattern(spec).heads(1), length).kinds[0]);
}

TEST(TilePairs, CountsWholeTilesOfSixteenQueries) {
  EXPECT_EQ(tiles_of("dense", 16), 16 * 16);
  EXPECT_EQ(tiles_of("dense", 20), 16 * (16 + 20));
  // Tile t sees the keys from 16 t - 31 (none before 0) to 16 t + 15.
  EXPECT_EQ(tiles_of("local(32)", 64), 16 * (16 + 32 + 47 + 47));
  EXPECT_EQ(tiles_of("row(8)", 32), 4 * 16 * 8);
  // Four lanes of 8 steps: each one tile, which sees its 8 keys.
  EXPECT_EQ(tiles_of("column(4)", 32), 4 * 16 * 8);
}

TEST(TilePairs, OfAUnionAreThoseOfItsParts) {
  // What the first part has of local(16) are the last keys of every query: only keys 1 to 15 are
  // left.
  EXPECT_EQ(tiles_of("row(16) + local(16)", 32), 16 * (16 + 16) + 16 * 15);
  // Here the second part asks pair by pair, of all keys but the last query's own: a column's.
  EXPECT_EQ(tiles_of("column(4) + local(8)", 16), 16 * (4 * 4) + 16 * 15);
  EXPECT_EQ(tiles_of("fixed(16, 4)", 32), tiles_of("row(16)", 32) + tiles_of("summary(16, 4)", 32));
}

AttentionBenchOptions small_growth() {
  AttentionBenchOptions o;
  o.parts = o.bf16 = false;
  o.min_length = 64;
  o.max_length = 128;
  return o;
}

TEST(BenchAttention, GrowthCountsTheWorkOfThePattern) {
  const BenchReport report = bench_attention(small_growth());
  ASSERT_EQ(report.rows.size(), 4u);
  EXPECT_GT(report.peak_flops, 0);
  EXPECT_GT(report.peak_bf16_flops, 0);
  EXPECT_GT(report.peak_bytes, 0);
  // Dense, 64 positions, 4 heads of 64: 2080 pairs a head; forward 2 products, backward 5.
  constexpr double kFlopsOfPair = 4 * (2 * 2 * 64 + 2 * 5 * 64);
  EXPECT_EQ(report.rows[1].series, "attention dense");
  EXPECT_EQ(report.rows[1].flops, 2080 * kFlopsOfPair);
  EXPECT_EQ(report.rows[1].tile_flops, 16 * (16 + 32 + 48 + 64) * kFlopsOfPair);
  // strided(8) against the definition.
  double pairs = 0;
  for (int i = 0; i < 64; ++i)
    for (int j = 0; j <= i; ++j) pairs += i - j < 8 || (i - j) % 8 == 0;
  EXPECT_EQ(report.rows[0].flops, pairs * kFlopsOfPair);
  for (const BenchRow& r : report.rows) EXPECT_GT(r.seconds, 0) << r.series;
  EXPECT_EQ(report.fits.size(), 2u);
}

TEST(BenchAttention, PartsHaveForwardAndBackwardInEachPrecision) {
  AttentionBenchOptions o;
  o.growth = false;
  o.heads = 2;
  o.length = 96;
  o.width = 16;
  o.stride = 8;
  o.summary = 4;
  o.dense_length = 32;
  const BenchReport report = bench_attention(o);
  ASSERT_EQ(report.rows.size(), 2u * 2u * 7u);  // precisions, passes, patterns
  const auto count = [&](auto&& holds) {
    return std::count_if(report.rows.begin(), report.rows.end(), holds);
  };
  EXPECT_EQ(count([](const BenchRow& r) { return r.bf16; }), 14);
  EXPECT_EQ(count([](const BenchRow& r) { return r.series.ends_with(", backward"); }), 14);
  for (const BenchRow& r : report.rows) {
    EXPECT_GT(r.seconds, 0) << r.series;
    EXPECT_GE(r.tile_flops, r.flops) << r.series;
    // q, k, v, out forward; backward dout, and dq, dk, dv in float, too.
    const double n = r.series.find("dense") == std::string::npos ? 96 : 32;
    const double value = r.bf16 ? 2 : 4;
    const bool backward = r.series.ends_with(", backward");
    EXPECT_EQ(r.bytes, n * 2 * 16 * (backward ? 5 * value + 3 * 4 : 4 * value)) << r.series;
  }
}

TEST(BenchAttention, RefusesWhatMakesNoSense) {
  const auto refused = [](auto&& change) {
    AttentionBenchOptions o = small_growth();
    change(o);
    EXPECT_THROW(bench_attention(o), Error);
  };
  refused([](auto& o) { o.min_length = 0; });
  refused([](auto& o) { o.min_length = 256; });
  refused([](auto& o) { o.max_length = std::int64_t{1} << 40; });
  refused([](auto& o) { o.f32 = false; });
  refused([](auto& o) { o.heads = 3; });
  refused([](auto& o) { o.batch = 0; });
  refused([](auto& o) { o.summary = 33; });
  refused([](auto& o) { o.length = o.width = o.heads = o.batch = 1 << 20; });
}

TEST(BenchOps, TimesEveryOperationInBothPrecisions) {
  const BenchReport report = bench_ops();
  for (const bool narrow : {false, true})
    for (const char* series : {"linear", "linear backward, dx and dW", "linear backward, dW",
                               "layer_norm", "activation", "activation backward", "residual",
                               "residual backward", "residual with dropout", "cross_entropy"})
      EXPECT_GE(
          std::count_if(report.rows.begin(), report.rows.end(),
                        [&](const BenchRow& r) { return r.series == series && r.bf16 == narrow; }),
          2)
          << series << (narrow ? " bf16" : " f32");
  for (const BenchRow& r : report.rows) {
    EXPECT_GT(r.seconds, 0) << r.series;
    EXPECT_GT(r.bytes, 0) << r.series;
  }
}

}  // namespace
}  // namespace longstride
