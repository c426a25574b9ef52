// Softmax cross-entropy, some rows at a time: largest logits, exponentials and their sums, losses,
// gradients. The logits are read from memory once, the gradients written once; what is between
// stays in the first-level cache, and rows side by side hide each other's latency.
//
// The loss of a sure prediction is what lies behind the 1 of its largest term. So the terms that
// are 1 are counted, and only the others are added, in float.
// Work: 20 instructions a vector. Bytes: 8 an element (6 with bf16). Bound: memory.
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "ops/cross_entropy/cross_entropy_cpu.cc"
#include "hwy/foreach_target.h"
// After foreach_target.h, which includes this file once per instruction set.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <vector>

#include "base/threads.h"
#include "hwy/cache_control.h"
#include "ops/cross_entropy/cross_entropy.h"
#include "ops/simd.h"

HWY_BEFORE_NAMESPACE();
namespace longstride::ops::HWY_NAMESPACE {

namespace {

constexpr std::int64_t kSide = 4;  // rows side by side
constexpr int kVectors = 4;        // and vectors

// max over [0, n); a NaN may be lost here, but not in the exponentials.
float row_max(const float* x, std::int64_t n) {
  const Floats d;
  FloatVec a = hn::Set(d, -std::numeric_limits<float>::infinity()), b = a;
  const std::int64_t step = float_lanes();
  std::int64_t i = 0;
  for (; i + 2 * step <= n; i += 2 * step) {
    a = hn::Max(a, hn::LoadU(d, x + i));
    b = hn::Max(b, hn::LoadU(d, x + i + step));
  }
  for (; i + step <= n; i += step) a = hn::Max(a, hn::LoadU(d, x + i));
  float rest = hn::GetLane(hn::MaxOfLanes(d, hn::Max(a, b)));
  for (; i < n; ++i) rest = std::max(rest, x[i]);
  return rest;
}

// The sum of exp(x[i] - largest), each stored in e[i] if wanted. `later` is a row that will be
// needed soon: memory is busy only now and then otherwise.
template <bool kStore>
double exponentials(const float* x, float largest, float* e, std::int64_t n, const float* later) {
  const Floats d;
  const hn::RebindToSigned<Floats> di;
  const std::int64_t step = float_lanes();
  const FloatVec top = hn::Set(d, largest), one = hn::Set(d, 1.0f);
  FloatVec rest[2] = {hn::Zero(d), hn::Zero(d)};
  auto ones = hn::Zero(di);
  for_groups<kVectors>(n, [&](std::int64_t i, auto lanes, auto vectors) {
    constexpr int kCount = decltype(vectors)::value;
    FloatVec term[kCount], off[kCount];
#pragma GCC unroll 16
    for (int k = 0; k < kCount; ++k) {
      off[k] = hn::Sub(lanes.load(x + i + k * step), top);
      hwy::Prefetch(later + i + k * step);
    }
    exp(d, off, term);
#pragma GCC unroll 16
    for (int k = 0; k < kCount; ++k) {
      if constexpr (kStore) lanes.store(term[k], e + i + k * step);
      const FloatVec counted = lanes.keep(term[k]);
      const auto whole = hn::Eq(counted, one);
      ones = hn::Sub(ones, hn::VecFromMask(di, hn::RebindMask(di, whole)));
      rest[k % 2] = hn::Add(rest[k % 2], hn::IfThenZeroElse(whole, counted));
    }
  });
  return static_cast<double>(hn::GetLane(hn::SumOfLanes(di, ones))) +
         static_cast<double>(hn::GetLane(hn::SumOfLanes(d, hn::Add(rest[0], rest[1]))));
}

// Rows [row, row + rows) with their exponentials in e [rows, V], or without gradients.
template <bool kGradients, class A>
void some_rows(const CrossEntropy<float, A>& op, std::int64_t row, std::int64_t rows, float* e) {
  const std::int64_t V = op.logits.cols;
  float largest[kSide];
  double sum[kSide];
  for (std::int64_t k = 0; k < rows; ++k) largest[k] = row_max(op.logits.row(row + k), V);
  for (std::int64_t k = 0; k < rows; ++k)
    sum[k] = exponentials<kGradients>(op.logits.row(row + k), largest[k], e + k * V, V,
                                      op.logits.row(std::min(row + k + kSide, op.logits.rows - 1)));
  for (std::int64_t k = 0; k < rows; ++k) {
    const auto correct = static_cast<double>(op.logits.row(row + k)[op.targets[row + k]]);
    const double off = correct - static_cast<double>(largest[k]);
    op.nats[row + k] = static_cast<float>(std::log(sum[k]) - off);
  }
  if constexpr (kGradients)
    for (std::int64_t k = 0; k < rows; ++k) {
      const float* const terms = e + k * V;
      A* const dx = op.dlogits.row(row + k);
      const auto inverse = static_cast<float>(1 / sum[k]);
      const FloatVec factor = hn::Set(Floats(), op.scale * inverse);
      for_vectors(V, [&](std::int64_t v, auto lanes) {
        lanes.store(hn::Mul(lanes.load(terms + v), factor), dx + v);
      });
      const std::uint8_t target = op.targets[row + k];
      dx[target] = A(op.scale * (terms[target] * inverse - 1));
    }
}

template <class A>
void rows(const CrossEntropy<float, A>& op, std::int64_t begin, std::int64_t end) {
  const bool gradients = !op.dlogits.empty();
  thread_local std::vector<float> scratch;
  const auto size = static_cast<std::size_t>(gradients ? kSide * op.logits.cols : 0);
  if (scratch.size() < size) scratch.resize(size);
  for (std::int64_t r = begin; r < end; r += kSide) {
    const std::int64_t count = std::min(kSide, end - r);
    if (gradients)
      some_rows<true>(op, r, count, scratch.data());
    else
      some_rows<false>(op, r, count, scratch.data());
  }
}

}  // namespace

void cross_entropy_float(const CrossEntropy<float>& op, std::int64_t begin, std::int64_t end) {
  rows(op, begin, end);
}
void cross_entropy_bf16(const CrossEntropy<float, bf16>& op, std::int64_t begin, std::int64_t end) {
  rows(op, begin, end);
}

}  // namespace longstride::ops::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace longstride::ops {

HWY_EXPORT(cross_entropy_float);
HWY_EXPORT(cross_entropy_bf16);

namespace cpu {

namespace {
constexpr std::int64_t kRows = 64;  // a task
}

void cross_entropy(const CrossEntropy<float>& op) {
  parallel_ranges(op.logits.rows, kRows, [&](std::int64_t begin, std::int64_t end) {
    HWY_DYNAMIC_DISPATCH(cross_entropy_float)(op, begin, end);
  });
}

void cross_entropy(const CrossEntropy<float, bf16>& op) {
  parallel_ranges(op.logits.rows, kRows, [&](std::int64_t begin, std::int64_t end) {
    HWY_DYNAMIC_DISPATCH(cross_entropy_bf16)(op, begin, end);
  });
}

}  // namespace cpu
}  // namespace longstride::ops
#endif  // HWY_ONCE
