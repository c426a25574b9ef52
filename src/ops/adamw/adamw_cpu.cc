// AdamW, a vector at a time. What is the same for all elements is computed once, in double.
// Bound: memory, 28 bytes an element (36 with the moving average).
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "ops/adamw/adamw_cpu.cc"
#include "hwy/foreach_target.h"
// After foreach_target.h, which includes this file once per instruction set.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

#include "base/integers.h"
#include "base/threads.h"
#include "ops/adamw/adamw.h"
#include "ops/adamw/adamw_ref.h"
#include "ops/simd.h"

HWY_BEFORE_NAMESPACE();
namespace longstride::ops::HWY_NAMESPACE {

// Elements [begin, end) of op, all with the same weight decay.
void adamw_range(const AdamW<float>& op, std::int64_t begin, std::int64_t end, double decay) {
  const auto set = [](double x) { return hn::Set(Floats(), static_cast<float>(x)); };
  const auto t = static_cast<double>(op.step);
  const FloatVec scale = set(op.grad_scale), eps = set(op.eps), shrink = set(op.lr * decay);
  const FloatVec b1 = set(op.beta1), one_b1 = set(1 - op.beta1);
  const FloatVec b2 = set(op.beta2), one_b2 = set(1 - op.beta2);
  const FloatVec lr = set(op.lr / (1 - std::pow(op.beta1, t)));
  const FloatVec root = set(1 / std::sqrt(1 - std::pow(op.beta2, t)));
  const FloatVec one_ema = set(1 - op.ema);

  for_vectors(end - begin, [&](std::int64_t offset, auto lanes) {
    const std::int64_t i = begin + offset;
    const FloatVec g = hn::Mul(scale, lanes.load(op.grad.data + i));
    const FloatVec m = hn::MulAdd(one_b1, g, hn::Mul(b1, lanes.load(op.m.data + i)));
    const FloatVec v = hn::MulAdd(hn::Mul(one_b2, g), g, hn::Mul(b2, lanes.load(op.v.data + i)));
    const FloatVec old = lanes.load(op.weights.data + i);
    const FloatVec step = hn::Div(hn::Mul(lr, m), hn::MulAdd(hn::Sqrt(v), root, eps));
    const FloatVec w = hn::Sub(old, hn::MulAdd(shrink, old, step));
    lanes.store(m, op.m.data + i);
    lanes.store(v, op.v.data + i);
    lanes.store(w, op.weights.data + i);
    if (op.average.empty()) return;
    const FloatVec average = lanes.load(op.average.data + i);
    lanes.store(hn::MulAdd(one_ema, hn::Sub(w, average), average), op.average.data + i);
  });
}

double sum_of_squares(const float* x, std::int64_t n) {
  const hn::ScalableTag<double> d;
  const hn::Rebind<float, decltype(d)> df;
  const auto step = static_cast<std::int64_t>(hn::Lanes(d));
  constexpr int kSums = 4;  // of their own, to hide the latency of an addition
  hn::Vec<decltype(d)> sum[kSums] = {hn::Zero(d), hn::Zero(d), hn::Zero(d), hn::Zero(d)};
  std::int64_t i = 0;
  for (; i + kSums * step <= n; i += kSums * step)
    for (int k = 0; k < kSums; ++k) {
      const auto a = hn::PromoteTo(d, hn::LoadU(df, x + i + k * step));
      sum[k] = hn::MulAdd(a, a, sum[k]);
    }
  const auto all = hn::Add(hn::Add(sum[0], sum[1]), hn::Add(sum[2], sum[3]));
  double total = hn::GetLane(hn::SumOfLanes(d, all));
  for (; i < n; ++i) total += static_cast<double>(x[i]) * static_cast<double>(x[i]);
  return total;
}

}  // namespace longstride::ops::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace longstride::ops {

HWY_EXPORT(adamw_range);
HWY_EXPORT(sum_of_squares);

namespace cpu {

namespace {
constexpr std::int64_t kGrain = 32768;  // elements a task, and a partial sum of the norm
}

void adamw(const AdamW<float>& op) {
  parallel_ranges(op.weights.size, kGrain, [&](std::int64_t from, std::int64_t to) {
    for_decay_runs(op, from, to, [&](std::int64_t begin, std::int64_t end, double decay) {
      HWY_DYNAMIC_DISPATCH(adamw_range)(op, begin, end, decay);
    });
  });
}

double global_norm(Vector<const float> x) {
  thread_local std::vector<double> scratch;
  scratch.assign(static_cast<std::size_t>(ceil_div(x.size, kGrain)), 0.0);
  std::vector<double>& sums = scratch;  // the caller's, also in the tasks of other threads
  parallel_ranges(x.size, kGrain, [&](std::int64_t begin, std::int64_t end) {
    sums[static_cast<std::size_t>(begin / kGrain)] =
        HWY_DYNAMIC_DISPATCH(sum_of_squares)(x.data + begin, end - begin);
  });
  double total = 0;
  for (const double sum : sums) total += sum;
  return std::sqrt(total);
}

}  // namespace cpu
}  // namespace longstride::ops
#endif  // HWY_ONCE
