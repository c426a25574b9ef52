#include "bench/measure.h"

#include <algorithm>
#include <chrono>
#include <cstring>
#include <limits>

#include "base/rng.h"
#include "base/threads.h"
#include "ops/linear/peak.h"

namespace longstride::bench {

namespace {

double seconds_of(const std::function<void()>& work) {
  const auto begin = std::chrono::steady_clock::now();
  work();
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
}

}  // namespace

double fastest(const std::function<void()>& work, double budget) {
  constexpr int kFewest = 2, kMost = 200;
  double spent = seconds_of(work), best = std::numeric_limits<double>::infinity();
  for (int call = 0; call < kMost && (call < kFewest || spent < budget); ++call) {
    const double seconds = seconds_of(work);
    best = std::min(best, seconds);
    spent += seconds;
  }
  return std::max(best, 1e-9);  // a clock tick, so that rates stay finite
}

double peak_bytes() {
  constexpr std::int64_t kSize = std::int64_t{32} << 20, kPiece = std::int64_t{1} << 18;
  const Buffer<float> from(kSize), to(kSize);
  const auto pieces = [&](const std::function<void(const float*, float*, std::int64_t)>& work) {
    return fastest([&] {
      parallel_ranges(kSize, kPiece, [&](std::int64_t begin, std::int64_t end) {
        work(from.data() + begin, to.data() + begin, end - begin);
      });
    });
  };
  const double bytes = static_cast<double>(kSize) * sizeof(float);
  const double copy = pieces([](const float* x, float* y, std::int64_t n) {
    std::memcpy(y, x, static_cast<std::size_t>(n) * sizeof(float));
  });
  const double update = pieces([](const float* x, float* y, std::int64_t n) {
    for (std::int64_t i = 0; i < n; ++i) y[i] += x[i];
  });
  return std::max(2 * bytes / copy, 3 * bytes / update);
}

void measure_peaks(BenchReport& report) {
  report.peak_flops = std::max(report.peak_flops, ops::measure_peak_flops());
  report.peak_bf16_flops = std::max(report.peak_bf16_flops, ops::measure_peak_bf16_flops());
  report.peak_bytes = std::max(report.peak_bytes, peak_bytes());
}

Buffer<float> random_values(std::int64_t size, std::uint64_t seed) {
  Buffer<float> values(size);
  constexpr std::int64_t kGrain = 1 << 16;  // even: a pair of values has one owner
  parallel_ranges(size, kGrain, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t i = begin; i < end; i += 2) {
      const auto pair = normal2(random4(seed, Stream::test, 0, static_cast<std::uint64_t>(i)));
      values[i] = static_cast<float>(pair[0]);
      if (i + 1 < end) values[i + 1] = static_cast<float>(pair[1]);
    }
  });
  return values;
}

}  // namespace longstride::bench

namespace longstride {

BenchReport bench_peaks() {
  constexpr int kRounds = 3;
  BenchReport report;
  for (int round = 0; round < kRounds; ++round) bench::measure_peaks(report);
  return report;
}

BenchFloor floor_of(const BenchRow& row, const BenchReport& report) {
  const double compute = row.flops / (row.bf16 ? report.peak_bf16_flops : report.peak_flops);
  const double memory = row.bytes / report.peak_bytes;
  return {std::max(compute, memory), memory >= compute};
}

}  // namespace longstride
