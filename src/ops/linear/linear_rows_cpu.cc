// y = x W + b, where each output element is bias (or 0) and then one fused multiply-add per k, in
// order. Vectors run over the columns of W, so that order holds for any number of rows, any tile
// and any tail: it is what makes a row's bits independent of the rest of the call.
//
// Tiles of up to 6 rows x 2 vectors stay in registers over a block of k (12 sums, 2 weights, 1
// input: the 16 registers of AVX2). Between blocks of k the sums rest in y, exactly. Few rows take
// wider tiles, to read W in longer runs. With many rows a task first copies its columns of W into
// one contiguous panel.
// Bound: compute for many rows; for one row, the bandwidth of reading W.
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "ops/linear/linear_rows_cpu.cc"
#include "hwy/foreach_target.h"
// After foreach_target.h, which includes this file once per instruction set.
#include <algorithm>
#include <cstdint>

#include "base/threads.h"
#include "ops/linear/linear.h"
#include "ops/simd.h"

HWY_BEFORE_NAMESPACE();
namespace longstride::ops::HWY_NAMESPACE {

namespace {

// Weights of the columns of a tile: row k at data + k * stride.
struct Panel {
  const float* data;
  std::int64_t stride;
};

// y[r, columns] (+)= x[r, k] W[k, columns] for kRows rows, kVecs vectors and k in [0, K).
template <int kRows, int kVecs, class Lanes>
HWY_INLINE void tile(const float* x, std::int64_t x_stride, Panel w, std::int64_t K, float* y,
                     std::int64_t y_stride, Lanes lanes) {
  const Floats d;
  const std::int64_t step = float_lanes();
  FloatVec sum[kRows][kVecs];
  for (int r = 0; r < kRows; ++r)
    for (int v = 0; v < kVecs; ++v) sum[r][v] = lanes.load(y + r * y_stride + v * step);
  for (std::int64_t k = 0; k < K; ++k) {
    FloatVec weight[kVecs];
    for (int v = 0; v < kVecs; ++v) weight[v] = lanes.load(w.data + k * w.stride + v * step);
    for (int r = 0; r < kRows; ++r) {
      const FloatVec input = hn::Set(d, x[r * x_stride + k]);
      for (int v = 0; v < kVecs; ++v) sum[r][v] = hn::MulAdd(input, weight[v], sum[r][v]);
    }
  }
  for (int r = 0; r < kRows; ++r)
    for (int v = 0; v < kVecs; ++v) lanes.store(sum[r][v], y + r * y_stride + v * step);
}

// All columns [0, cols) of kRows rows.
template <int kRows, int kVecs>
void strip(const float* x, std::int64_t x_stride, Panel w, std::int64_t K, float* y,
           std::int64_t y_stride, std::int64_t cols) {
  const std::int64_t step = float_lanes();
  std::int64_t n = 0;
  for (; n + kVecs * step <= cols; n += kVecs * step)
    tile<kRows, kVecs>(x, x_stride, {w.data + n, w.stride}, K, y + n, y_stride, Whole{});
  for (; n + step <= cols; n += step)
    tile<kRows, 1>(x, x_stride, {w.data + n, w.stride}, K, y + n, y_stride, Whole{});
  if (n < cols)
    tile<kRows, 1>(x, x_stride, {w.data + n, w.stride}, K, y + n, y_stride, Part{cols - n});
}

}  // namespace

// One task: adds x W to y, which holds the bias. x [R, K], w [K, N], y [R, N].
void linear_rows_task(Matrix<const float> x, Matrix<const float> w, Matrix<float> y) {
  constexpr std::int64_t kBlock = 256;  // of k: a panel of it stays in the first-level cache
  for (std::int64_t k = 0; k < x.cols; k += kBlock) {
    const std::int64_t K = std::min(kBlock, x.cols - k);
    const Panel panel{w.row(k), w.stride};
    std::int64_t r = 0;
    for (; r + 6 <= y.rows; r += 6)
      strip<6, 2>(x.row(r) + k, x.stride, panel, K, y.row(r), y.stride, y.cols);
    for (; r + 2 <= y.rows; r += 2)
      strip<2, 4>(x.row(r) + k, x.stride, panel, K, y.row(r), y.stride, y.cols);
    if (r < y.rows) strip<1, 8>(x.row(r) + k, x.stride, panel, K, y.row(r), y.stride, y.cols);
  }
}

}  // namespace longstride::ops::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace longstride::ops {

HWY_EXPORT(linear_rows_task);

namespace cpu {

void linear_rows(const Linear<float>& op) {
  constexpr std::int64_t kTileRows = 96, kTileCols = 128;
  const std::int64_t R = op.x.rows, K = op.x.cols, N = op.y.cols;
  const std::int64_t down = (R + kTileRows - 1) / kTileRows;
  const std::int64_t across = (N + kTileCols - 1) / kTileCols;
  parallel_for(down * across, [&](std::int64_t task) {
    const std::int64_t row = task / across * kTileRows, col = task % across * kTileCols;
    const std::int64_t rows = std::min(kTileRows, R - row), cols = std::min(kTileCols, N - col);
    const Matrix<float> y{op.y.row(row) + col, rows, cols, op.y.stride};
    for (std::int64_t r = 0; r < rows; ++r) {
      if (op.bias.empty())
        std::fill_n(y.row(r), cols, 0.0f);
      else
        std::copy_n(op.bias.data + col, cols, y.row(r));
    }
    HWY_DYNAMIC_DISPATCH(linear_rows_task)
    ({op.x.row(row), rows, K, op.x.stride}, {op.weight.data + col, K, cols, op.weight.stride}, y);
  });
}

}  // namespace cpu
}  // namespace longstride::ops
#endif  // HWY_ONCE
