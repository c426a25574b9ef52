// Layer norm: three passes over a row, which the first-level cache keeps after the first.
// Bound: memory, 8 bytes an element forward, 16 backward (read x, dy, dx; write dx).
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "ops/layer_norm/layer_norm_cpu.cc"
#include "hwy/foreach_target.h"
// After foreach_target.h, which includes this file once per instruction set.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

#include "base/integers.h"
#include "base/threads.h"
#include "ops/layer_norm/layer_norm.h"
#include "ops/simd.h"

HWY_BEFORE_NAMESPACE();
namespace longstride::ops::HWY_NAMESPACE {

void layer_norm_rows(const LayerNorm<float>& op, std::int64_t begin, std::int64_t end) {
  const Floats d;
  const std::int64_t C = op.x.cols;
  const float *const gain = op.gain.data, *const bias = op.bias.data;
  for (std::int64_t r = begin; r < end; ++r) {
    const float* const x = op.x.row(r);
    float* const y = op.y.row(r);

    const float mean = sum_of(C, [&](std::int64_t c, auto lanes) { return lanes.load(x + c); }) /
                       static_cast<float>(C);
    const FloatVec m = hn::Set(d, mean);
    const float squares = sum_of(C, [&](std::int64_t c, auto lanes) {
      const FloatVec off = hn::Sub(lanes.load(x + c), m);
      return hn::Mul(off, off);
    });
    const float rstd = 1 / std::sqrt(squares / static_cast<float>(C) + op.eps);

    const FloatVec s = hn::Set(d, rstd);
    for_vectors(C, [&](std::int64_t c, auto lanes) {
      const FloatVec xhat = hn::Mul(hn::Sub(lanes.load(x + c), m), s);
      lanes.store(hn::MulAdd(xhat, lanes.load(gain + c), lanes.load(bias + c)), y + c);
    });
    if (!op.mean.empty()) op.mean[r] = mean, op.rstd[r] = rstd;
  }
}

// dx of the rows, and their sums of dy xhat and dy added to dgain and dbias, of C entries each.
void layer_norm_backward_rows(const LayerNormBackward<float>& op, std::int64_t begin,
                              std::int64_t end, float* dgain, float* dbias) {
  const Floats d;
  const std::int64_t C = op.x.cols;
  const float* const gain = op.gain.data;
  for (std::int64_t r = begin; r < end; ++r) {
    const float *const x = op.x.row(r), *const dy = op.dy.row(r);
    float* const dx = op.dx.row(r);
    const FloatVec m = hn::Set(d, op.mean[r]), s = hn::Set(d, op.rstd[r]);
    const auto xhat = [&](std::int64_t c, auto lanes) {
      return hn::Mul(hn::Sub(lanes.load(x + c), m), s);
    };
    const auto g = [&](std::int64_t c, auto lanes) {
      return hn::Mul(lanes.load(dy + c), lanes.load(gain + c));
    };

    const float mean_g = sum_of(C, g) / static_cast<float>(C);
    const float mean_gx =
        sum_of(C,
               [&](std::int64_t c, auto lanes) { return hn::Mul(g(c, lanes), xhat(c, lanes)); }) /
        static_cast<float>(C);

    const FloatVec mg = hn::Set(d, mean_g), mgx = hn::Set(d, mean_gx);
    for_vectors(C, [&](std::int64_t c, auto lanes) {
      const FloatVec h = xhat(c, lanes), dyc = lanes.load(dy + c);
      const FloatVec inner = hn::NegMulAdd(h, mgx, hn::Sub(g(c, lanes), mg));
      lanes.store(hn::MulAdd(s, inner, lanes.load(dx + c)), dx + c);
      lanes.store(hn::MulAdd(dyc, h, lanes.load(dgain + c)), dgain + c);
      lanes.store(hn::Add(dyc, lanes.load(dbias + c)), dbias + c);
    });
  }
}

}  // namespace longstride::ops::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace longstride::ops {

HWY_EXPORT(layer_norm_rows);
HWY_EXPORT(layer_norm_backward_rows);

namespace cpu {

namespace {
constexpr std::int64_t kRows = 64;  // a task; in backward also a partial sum of dgain and dbias
}

void layer_norm(const LayerNorm<float>& op) {
  parallel_ranges(op.x.rows, kRows, [&](std::int64_t begin, std::int64_t end) {
    HWY_DYNAMIC_DISPATCH(layer_norm_rows)(op, begin, end);
  });
}

void layer_norm_backward(const LayerNormBackward<float>& op) {
  const std::int64_t C = op.x.cols, pieces = ceil_div(op.x.rows, kRows);
  thread_local std::vector<float> scratch;  // [pieces, 2 C]
  scratch.assign(static_cast<std::size_t>(pieces * 2 * C), 0.0f);
  float* const sums = scratch.data();
  parallel_for(pieces, [&](std::int64_t p) {
    float* const sum = sums + p * 2 * C;
    HWY_DYNAMIC_DISPATCH(layer_norm_backward_rows)
    (op, p * kRows, std::min(op.x.rows, (p + 1) * kRows), sum, sum + C);
  });
  for (std::int64_t p = 0; p < pieces; ++p)
    for (std::int64_t c = 0; c < C; ++c) {
      op.dgain[c] += sums[p * 2 * C + c];
      op.dbias[c] += sums[p * 2 * C + C + c];
    }
}

}  // namespace cpu
}  // namespace longstride::ops
#endif  // HWY_ONCE
