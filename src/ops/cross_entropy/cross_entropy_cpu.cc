// Softmax cross-entropy, row by row. The sum of a row is taken in double: the exponentials are
// float, but the loss of a sure prediction is what lies behind the 1 of its largest term.
// Bound: the exponentials; memory (8 bytes an element) on several threads.
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "ops/cross_entropy/cross_entropy_cpu.cc"
#include "hwy/foreach_target.h"
// After foreach_target.h, which includes this file once per instruction set.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>

#include "base/threads.h"
#include "ops/cross_entropy/cross_entropy.h"
#include "ops/simd.h"

HWY_BEFORE_NAMESPACE();
namespace longstride::ops::HWY_NAMESPACE {

namespace {

constexpr std::int64_t kSymbols = 256;  // targets are bytes; longer rows go in pieces of it

// max over [0, n); a NaN may be lost here, but not in the exponentials.
float row_max(const float* x, std::int64_t n) {
  const Floats d;
  FloatVec largest = hn::Set(d, -std::numeric_limits<float>::infinity());
  const std::int64_t step = float_lanes();
  std::int64_t i = 0;
  for (; i + step <= n; i += step) largest = hn::Max(largest, hn::LoadU(d, x + i));
  float rest = hn::GetLane(hn::MaxOfLanes(d, largest));
  for (; i < n; ++i) rest = std::max(rest, x[i]);
  return rest;
}

double sum_in_double(const float* x, std::int64_t n) {
  const hn::ScalableTag<double> d;
  const hn::Rebind<float, decltype(d)> df;
  const auto step = static_cast<std::int64_t>(hn::Lanes(d));
  auto sum = hn::Zero(d);
  std::int64_t i = 0;
  for (; i + step <= n; i += step) sum = hn::Add(sum, hn::PromoteTo(d, hn::LoadU(df, x + i)));
  double total = hn::GetLane(hn::SumOfLanes(d, sum));
  for (; i < n; ++i) total += static_cast<double>(x[i]);
  return total;
}

// e[i] = exp(x[i] - largest); returns their sum. e may be x.
double exponentials(const float* x, float largest, float* e, std::int64_t n) {
  const FloatVec top = hn::Set(Floats(), largest);
  for_vectors(n, [&](std::int64_t i, auto lanes) {
    lanes.store(exp_negative(hn::Sub(lanes.load(x + i), top)), e + i);
  });
  return sum_in_double(e, n);
}

}  // namespace

void cross_entropy_rows(const CrossEntropy<float>& op, std::int64_t begin, std::int64_t end) {
  const std::int64_t V = op.logits.cols;
  HWY_ALIGN float scratch[kSymbols];
  for (std::int64_t r = begin; r < end; ++r) {
    const float* const x = op.logits.row(r);
    const std::uint8_t target = op.targets[r];
    const float largest = row_max(x, V);
    const double correct = static_cast<double>(x[target]) - static_cast<double>(largest);

    // Row by row in pieces, so that a row without dlogits needs no memory of its own.
    float* const dx = op.dlogits.empty() ? nullptr : op.dlogits.row(r);
    double sum = 0;
    for (std::int64_t v = 0; v < V; v += kSymbols)
      sum += exponentials(x + v, largest, dx ? dx + v : scratch, std::min(kSymbols, V - v));
    op.nats[r] = static_cast<float>(std::log(sum) - correct);
    if (dx == nullptr) continue;

    const auto inverse = static_cast<float>(1 / sum);
    const float at_target = op.scale * (dx[target] * inverse - 1);
    const FloatVec factor = hn::Set(Floats(), op.scale * inverse);
    for_vectors(V, [&](std::int64_t v, auto lanes) {
      lanes.store(hn::Mul(lanes.load(dx + v), factor), dx + v);
    });
    dx[target] = at_target;
  }
}

}  // namespace longstride::ops::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace longstride::ops {

HWY_EXPORT(cross_entropy_rows);

namespace cpu {

void cross_entropy(const CrossEntropy<float>& op) {
  constexpr std::int64_t kRows = 64;
  parallel_ranges(op.logits.rows, kRows, [&](std::int64_t begin, std::int64_t end) {
    HWY_DYNAMIC_DISPATCH(cross_entropy_rows)(op, begin, end);
  });
}

}  // namespace cpu
}  // namespace longstride::ops
#endif  // HWY_ONCE
