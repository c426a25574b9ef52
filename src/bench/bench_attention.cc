// Time of attention against the length: work proportional to the kept pairs shows as an exponent.
#include <cmath>

#include "bench/fit.h"
#include "bench/measure.h"
#include "longstride/error.h"
#include "longstride/pattern.h"
#include "ops/attention/attention.h"
#include "pattern/plan.h"
#include "pattern/work.h"

namespace longstride {

namespace {

constexpr std::int64_t kHeads = 4, kWidth = 64;
constexpr std::int64_t kLongestDense = 8192;
constexpr std::int64_t kLongest = std::int64_t{1} << 24;

struct Tensors {  // [1, N, H, D] each
  explicit Tensors(std::int64_t length)
      : n(length),
        q(values(1)),
        k(values(2)),
        v(values(3)),
        dout(values(4)),
        out(size()),
        dq(size()),
        dk(size()),
        dv(size()),
        lse(kHeads * n) {}

  std::int64_t size() const { return n * kHeads * kWidth; }
  Buffer<float> values(std::uint64_t seed) const { return bench::random_values(size(), seed); }
  Heads<float> heads(const Buffer<float>& b) const {
    return {b.data(), 1, n, kHeads, kWidth, kHeads * kWidth};
  }

  std::int64_t n;
  Buffer<float> q, k, v, dout, out, dq, dk, dv, lse;
};

void forward_and_backward(const AttentionPlan& plan, const Tensors& t) {
  const float scale = 1 / std::sqrt(static_cast<float>(kWidth));
  ops::attention({.plan = &plan,
                  .q = t.heads(t.q),
                  .k = t.heads(t.k),
                  .v = t.heads(t.v),
                  .out = t.heads(t.out),
                  .lse = t.lse.vector(),
                  .scale = scale});
  ops::attention_backward({.plan = &plan,
                           .q = t.heads(t.q),
                           .k = t.heads(t.k),
                           .v = t.heads(t.v),
                           .out = t.heads(t.out),
                           .dout = t.heads(t.dout),
                           .lse = t.lse.vector(),
                           .dq = t.heads(t.dq),
                           .dk = t.heads(t.dk),
                           .dv = t.heads(t.dv),
                           .scale = scale});
}

BenchRow time_pattern(const std::string& series, const std::string& spec, const Tensors& t) {
  const AttentionPlan plan(parse_pattern(spec).heads(kHeads), t.n);
  const std::int64_t block = 32;  // only for the count of blocks, which is not used here
  const std::int64_t pairs = count_work(plan.kinds[0], t.n, block).pairs;
  const HeadCost c = cost(pairs, t.n, kWidth, kWidth, sizeof(float));
  BenchRow row;
  row.series = series;
  row.shape = text("N ", t.n, " ", spec);
  row.size = static_cast<double>(t.n);
  row.flops = kHeads * (c.forward_flops + c.backward_flops);
  row.bytes = kHeads * (c.forward_bytes + c.backward_bytes);
  row.seconds = bench::fastest([&] { forward_and_backward(plan, t); });
  return row;
}

}  // namespace

BenchReport bench_attention(std::int64_t min_length, std::int64_t max_length) {
  if (min_length < 2 || min_length > max_length || max_length > kLongest)
    throw invalid_argument("bench: lengths are ", min_length, " to ", max_length,
                           ", want 2 <= min <= max <= ", kLongest);
  BenchReport report;
  bench::measure_peaks(report);
  for (std::int64_t n = min_length; n <= max_length; n *= 2) {
    const Tensors tensors(n);
    const auto stride = std::llround(std::sqrt(static_cast<double>(n)));
    report.rows.push_back(
        time_pattern("attention strided(sqrt N)", text("strided(", stride, ")"), tensors));
    if (n <= kLongestDense)
      report.rows.push_back(time_pattern("attention dense", "dense", tensors));
  }
  bench::measure_peaks(report);
  report.fits = bench::fit_exponents(report.rows);
  return report;
}

}  // namespace longstride
