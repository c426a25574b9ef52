// Layer norm: three passes over a row forward, two backward, which the first-level cache keeps
// after the first.
// Work: 7 instructions a vector forward, 12 backward, and as many loads. Bytes an element: 8
// forward (6 with bf16), 16 backward (read x, dy, dx; write dx). Bound: memory.
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
#include "hwy/cache_control.h"
#include "ops/layer_norm/layer_norm.h"
#include "ops/simd.h"

HWY_BEFORE_NAMESPACE();
namespace longstride::ops::HWY_NAMESPACE {

namespace {

template <class A>
void forward_rows(const LayerNorm<float, A>& op, std::int64_t begin, std::int64_t end) {
  const Floats d;
  const std::int64_t C = op.x.cols;
  const float *const gain = op.gain.data, *const bias = op.bias.data;
  const float eps = op.eps;
  for (std::int64_t r = begin; r < end; ++r) {
    const float* const x = op.x.row(r);
    A* const y = op.y.row(r);

    const float mean = sum_of(C, [&](std::int64_t c, auto lanes) { return lanes.load(x + c); }) /
                       static_cast<float>(C);
    const FloatVec m = hn::Set(d, mean);
    const float squares = sum_of(C, [&](std::int64_t c, auto lanes) {
      const FloatVec off = hn::Sub(lanes.load(x + c), m);
      return hn::Mul(off, off);
    });
    const float rstd = 1 / std::sqrt(squares / static_cast<float>(C) + eps);

    const FloatVec s = hn::Set(d, rstd);
    // The next row is fetched meanwhile: memory would be busy in a third of the time otherwise.
    const float* const later = op.x.row(std::min(r + 1, op.x.rows - 1));
    for_vectors(C, [&](std::int64_t c, auto lanes) {
      hwy::Prefetch(later + c);
      const FloatVec xhat = hn::Mul(hn::Sub(lanes.load(x + c), m), s);
      lanes.store(hn::MulAdd(xhat, lanes.load(gain + c), lanes.load(bias + c)), y + c);
    });
    if (!op.mean.empty()) op.mean[r] = mean, op.rstd[r] = rstd;
  }
}

// kRows rows at a time, so that the sums over rows are loaded and stored once for all of them; each
// adds to them in order, and to its own two sums as if it were alone.
template <int kRows>
void backward_rows(const LayerNormBackward<float>& op, std::int64_t row, float* dgain,
                   float* dbias) {
  const Floats d;
  const std::int64_t C = op.x.cols;
  const float* const gain = op.gain.data;
  const float *x[kRows], *dy[kRows];
  FloatVec m[kRows], s[kRows], sum_g[kRows], sum_gx[kRows];
  for (int k = 0; k < kRows; ++k) {
    x[k] = op.x.row(row + k);
    dy[k] = op.dy.row(row + k);
    m[k] = hn::Set(d, op.mean[row + k]);
    s[k] = hn::Set(d, op.rstd[row + k]);
    sum_g[k] = sum_gx[k] = hn::Zero(d);
  }
  for_vectors(C, [&](std::int64_t c, auto lanes) {
    FloatVec dg = lanes.load(dgain + c), db = lanes.load(dbias + c);
    const FloatVec w = lanes.load(gain + c);
    for (int k = 0; k < kRows; ++k) {
      const FloatVec xhat = hn::Mul(hn::Sub(lanes.load(x[k] + c), m[k]), s[k]);
      const FloatVec dyc = lanes.load(dy[k] + c), g = hn::Mul(dyc, w);
      dg = hn::MulAdd(dyc, xhat, dg);
      db = hn::Add(db, dyc);
      sum_g[k] = hn::Add(sum_g[k], g);
      sum_gx[k] = hn::MulAdd(g, xhat, sum_gx[k]);
    }
    lanes.store(dg, dgain + c);
    lanes.store(db, dbias + c);
  });

  for (int k = 0; k < kRows; ++k) {
    const auto mean_of = [&](FloatVec sum) {
      return hn::Set(d, hn::GetLane(hn::SumOfLanes(d, sum)) / static_cast<float>(C));
    };
    const FloatVec mg = mean_of(sum_g[k]), mgx = mean_of(sum_gx[k]);
    float* const dx = op.dx.row(row + k);
    const std::int64_t next = std::min(row + k + kRows, op.x.rows - 1);
    const float *const later_x = op.x.row(next), *const later_dy = op.dy.row(next);
    for_vectors(C, [&](std::int64_t c, auto lanes) {
      hwy::Prefetch(later_x + c);
      hwy::Prefetch(later_dy + c);
      const FloatVec xhat = hn::Mul(hn::Sub(lanes.load(x[k] + c), m[k]), s[k]);
      const FloatVec g = hn::Mul(lanes.load(dy[k] + c), lanes.load(gain + c));
      const FloatVec inner = hn::NegMulAdd(xhat, mgx, hn::Sub(g, mg));
      lanes.store(hn::MulAdd(s[k], inner, lanes.load(dx + c)), dx + c);
    });
  }
}

}  // namespace

void layer_norm_float(const LayerNorm<float>& op, std::int64_t begin, std::int64_t end) {
  forward_rows(op, begin, end);
}
void layer_norm_bf16(const LayerNorm<float, bf16>& op, std::int64_t begin, std::int64_t end) {
  forward_rows(op, begin, end);
}

// dx of the rows, and their sums of dy xhat and dy in sums[0, C) and sums[C, 2 C).
void layer_norm_backward_rows(const LayerNormBackward<float>& op, std::int64_t begin,
                              std::int64_t end, float* sums) {
  const std::int64_t C = op.x.cols;
  std::fill_n(sums, 2 * C, 0.0f);
  std::int64_t r = begin;
  for (; r + 2 <= end; r += 2) backward_rows<2>(op, r, sums, sums + C);
  if (r < end) backward_rows<1>(op, r, sums, sums + C);
}

}  // namespace longstride::ops::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace longstride::ops {

HWY_EXPORT(layer_norm_float);
HWY_EXPORT(layer_norm_bf16);
HWY_EXPORT(layer_norm_backward_rows);

namespace cpu {

namespace {

constexpr std::int64_t kRows = 64;  // a task; in backward also a partial sum of dgain and dbias

// into[c] += the sum over p of sums[p * stride + c].
void add_pieces(Vector<float> into, const float* sums, std::int64_t pieces, std::int64_t stride) {
  constexpr std::int64_t kColumns = 256;
  parallel_ranges(into.size, kColumns, [&](std::int64_t begin, std::int64_t end) {
    float* const to = into.data;
    for (std::int64_t p = 0; p < pieces; ++p)
      for (std::int64_t c = begin; c < end; ++c) to[c] += sums[p * stride + c];
  });
}

}  // namespace

void layer_norm(const LayerNorm<float>& op) {
  parallel_ranges(op.x.rows, kRows, [&](std::int64_t begin, std::int64_t end) {
    HWY_DYNAMIC_DISPATCH(layer_norm_float)(op, begin, end);
  });
}

void layer_norm(const LayerNorm<float, bf16>& op) {
  parallel_ranges(op.x.rows, kRows, [&](std::int64_t begin, std::int64_t end) {
    HWY_DYNAMIC_DISPATCH(layer_norm_bf16)(op, begin, end);
  });
}

void layer_norm_backward(const LayerNormBackward<float>& op) {
  const std::int64_t C = op.x.cols, pieces = ceil_div(op.x.rows, kRows);
  thread_local std::vector<float> scratch;  // [pieces, 2 C]
  const auto size = static_cast<std::size_t>(pieces * 2 * C);
  if (scratch.size() < size) scratch.resize(size);
  float* const sums = scratch.data();
  parallel_for(pieces, [&](std::int64_t p) {
    HWY_DYNAMIC_DISPATCH(layer_norm_backward_rows)
    (op, p * kRows, std::min(op.x.rows, (p + 1) * kRows), sums + p * 2 * C);
  });
  add_pieces(op.dgain, sums, pieces, 2 * C);
  add_pieces(op.dbias, sums + C, pieces, 2 * C);
}

}  // namespace cpu
}  // namespace longstride::ops
#endif  // HWY_ONCE
