// y = x W + b, where each output element is bias (or 0) and then one fused multiply-add per k, in
// order. Vectors run over the columns of W, so that order holds for any number of rows, any tile
// and any tail: it is what makes a row's bits independent of the rest of the call.
//
// A tile of up to 6 rows x 2 vectors stays in registers over a block of k (12 sums, 2 weights, 1
// input: the 16 registers of AVX2). Between blocks of k the sums rest in y, exactly. Few rows take
// wider tiles, to read W in longer runs; for many rows a block of W is first copied to where its
// rows lie side by side (in W they may be a power of two apart, all in one set of the cache).
// Bound: compute for many rows; for one row, the bandwidth of reading W.
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "ops/linear/linear_rows_cpu.cc"
#include "hwy/foreach_target.h"
// After foreach_target.h, which includes this file once per instruction set.
#include <algorithm>
#include <cstdint>

#include "base/integers.h"
#include "base/threads.h"
#include "hwy/cache_control.h"
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

// All columns [0, cols) of kRows rows: as many tiles of kVecs vectors as fit, then narrower ones.
template <int kRows, int kVecs>
void strip(const float* x, std::int64_t x_stride, Panel w, std::int64_t K, float* y,
           std::int64_t y_stride, std::int64_t cols) {
  const std::int64_t width = kVecs * float_lanes();
  std::int64_t n = 0;
  for (; n + width <= cols; n += width)
    tile<kRows, kVecs>(x, x_stride, {w.data + n, w.stride}, K, y + n, y_stride, Whole{});
  if (n == cols) return;
  const Panel rest{w.data + n, w.stride};
  if constexpr (kVecs > 1)
    strip<kRows, kVecs / 2>(x, x_stride, rest, K, y + n, y_stride, cols - n);
  else
    tile<kRows, 1>(x, x_stride, rest, K, y + n, y_stride, Part{cols - n});
}

// All rows: groups of 6, then what is left.
void all_rows(const float* x, std::int64_t x_stride, Panel w, std::int64_t K, Matrix<float> y) {
  for (std::int64_t r = 0; r < y.rows; r += 6) {
    // The next sums come from outside the nearer caches.
    for (std::int64_t next = r + 6; next < std::min(r + 12, y.rows); ++next)
      hwy::Prefetch(y.row(next));
    const auto run = [&](auto strip_of) {
      strip_of(x + r * x_stride, x_stride, w, K, y.row(r), y.stride, y.cols);
    };
    switch (std::min<std::int64_t>(y.rows - r, 6)) {
      case 1:
        run(strip<1, 8>);
        break;
      case 2:
        run(strip<2, 4>);
        break;
      case 3:
        run(strip<3, 4>);
        break;
      case 4:
        run(strip<4, 2>);
        break;
      case 5:
        run(strip<5, 2>);
        break;
      default:
        run(strip<6, 2>);
    }
  }
}

constexpr std::int64_t kBlock = 256;    // of k: 256 x 2 vectors stay in the first-level cache
constexpr std::int64_t kPackRows = 36;  // from here on, copying W costs less than it saves

}  // namespace

// One task: adds x W to y, which holds the bias. x [R, K], w [K, N], y [R, N].
void linear_rows_task(Matrix<const float> x, Matrix<const float> w, Matrix<float> y) {
  HWY_ALIGN float packed[static_cast<std::size_t>(kBlock) * 2 * hn::MaxLanes(Floats())];
  const std::int64_t width = 2 * float_lanes();
  for (std::int64_t k = 0; k < x.cols; k += kBlock) {
    const std::int64_t K = std::min(kBlock, x.cols - k);
    const float* const inputs = x.data + k;
    if (y.rows < kPackRows) {
      all_rows(inputs, x.stride, {w.row(k), w.stride}, K, y);
      continue;
    }
    for (std::int64_t n = 0; n < y.cols; n += width) {
      const std::int64_t cols = std::min(width, y.cols - n);
      for (std::int64_t i = 0; i < K; ++i)
        for_vectors(cols, [&](std::int64_t c, auto lanes) {
          lanes.store(lanes.load(w.row(k + i) + n + c), packed + i * width + c);
        });
      all_rows(inputs, x.stride, {packed, width}, K, {y.data + n, y.rows, cols, y.stride});
    }
  }
}

}  // namespace longstride::ops::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace longstride::ops {

HWY_EXPORT(linear_rows_task);

namespace cpu {

void linear_rows(const Linear<float>& op) {
  // A task is some 2^17 multiply-adds or more: 10 us, for threads to be worth waking.
  constexpr std::int64_t kTileRows = 384, kMinCols = 128, kWork = 1 << 17;
  const std::int64_t R = op.x.rows, K = op.x.cols, N = op.y.cols;
  const std::int64_t per_col = std::max<std::int64_t>(1, K * std::min(R, kTileRows));
  const std::int64_t tile_cols = (kWork / per_col / kMinCols + 1) * kMinCols;
  const std::int64_t down = ceil_div(R, kTileRows);
  const std::int64_t across = ceil_div(N, tile_cols);
  parallel_for(down * across, [&](std::int64_t task) {
    const std::int64_t row = task / across * kTileRows, col = task % across * tile_cols;
    const std::int64_t rows = std::min(kTileRows, R - row), cols = std::min(tile_cols, N - col);
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
