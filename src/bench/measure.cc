#include "bench/measure.h"

#include <algorithm>
#include <chrono>
#include <cstring>
#include <limits>

#include "base/rng.h"
#include "base/threads.h"
#include "ops/linear/linear.h"

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

double peak_flops() {
  constexpr std::int64_t kSide = 1024;
  const Buffer<float> x = random_values(kSide * kSide, 1), weight = random_values(kSide * kSide, 2);
  const Buffer<float> y(kSide * kSide);
  const double seconds = fastest([&] {
    ops::linear_forward({.x = x.matrix(kSide, kSide),
                         .weight = weight.matrix(kSide, kSide),
                         .bias = {},
                         .y = y.matrix(kSide, kSide)});
  });
  return 2.0 * kSide * kSide * kSide / seconds;
}

double peak_bytes() {
  constexpr std::int64_t kBytes = std::int64_t{128} << 20, kPiece = std::int64_t{1} << 20;
  const Buffer<char> from(kBytes), to(kBytes);
  const double seconds = fastest([&] {
    parallel_ranges(kBytes, kPiece, [&](std::int64_t begin, std::int64_t end) {
      std::memcpy(to.data() + begin, from.data() + begin, static_cast<std::size_t>(end - begin));
    });
  });
  return 2.0 * static_cast<double>(kBytes) / seconds;
}

void measure_peaks(BenchReport& report) {
  report.peak_flops = std::max(report.peak_flops, peak_flops());
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
