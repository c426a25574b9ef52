// y = x W + b for so few rows that packing W would cost more than it saves. Sums as in
// product_cpu.cc: over k in order within a block of kDepth, then what the blocks before have given
// is added. So a row has the same bits here and there.
//
// A tile of up to 6 rows x 2 vectors stays in registers over a block; fewer rows take wider tiles,
// to read W in longer runs.
// Bound: the bandwidth of reading W.
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "ops/linear/few_rows_cpu.cc"
#include "hwy/foreach_target.h"
// After foreach_target.h, which includes this file once per instruction set.
#include <algorithm>
#include <cstdint>

#include "base/integers.h"
#include "base/threads.h"
#include "ops/linear/pack-inl.h"
#include "ops/linear/product.h"

HWY_BEFORE_NAMESPACE();
namespace longstride::ops::HWY_NAMESPACE {

namespace {

// Weights of the columns of a tile: row k at data + k * stride.
struct Panel {
  const float* data;
  std::int64_t stride;
};

// y = start + x W for kRows rows, kVecs vectors of columns and k in [0, K).
template <int kRows, int kVecs, class Lanes>
HWY_INLINE void few_rows_tile(Panel x, Panel w, std::int64_t K, cpu::Start start, float* y,
                              std::int64_t y_stride, Lanes lanes) {
  const Floats d;
  const std::int64_t step = float_lanes();
  FloatVec sum[kRows][kVecs];
  for (int r = 0; r < kRows; ++r)
    for (int v = 0; v < kVecs; ++v) sum[r][v] = hn::Zero(d);
  for (std::int64_t k = 0; k < K; ++k) {
    FloatVec weight[kVecs];
    for (int v = 0; v < kVecs; ++v) weight[v] = lanes.load(w.data + k * w.stride + v * step);
    for (int r = 0; r < kRows; ++r) {
      const FloatVec input = hn::Set(d, x.data[r * x.stride + k]);
      for (int v = 0; v < kVecs; ++v) sum[r][v] = hn::MulAdd(input, weight[v], sum[r][v]);
    }
  }
  for (int r = 0; r < kRows; ++r)
    for (int v = 0; v < kVecs; ++v) {
      if (start.data)
        sum[r][v] = hn::Add(sum[r][v], lanes.load(start.data + r * start.stride + v * step));
      lanes.store(sum[r][v], y + r * y_stride + v * step);
    }
}

// All columns of kRows rows: as many tiles of kVecs vectors as fit, then narrower ones.
template <int kRows, int kVecs>
void strip(Panel x, Panel w, std::int64_t K, cpu::Start start, Matrix<float> y) {
  const std::int64_t width = kVecs * float_lanes();
  std::int64_t n = 0;
  for (; n + width <= y.cols; n += width)
    few_rows_tile<kRows, kVecs>(x, {w.data + n, w.stride}, K, start.from(0, n), y.data + n,
                                y.stride, Whole{});
  if (n == y.cols) return;
  const Panel rest{w.data + n, w.stride};
  if constexpr (kVecs > 1)
    strip<kRows, kVecs / 2>(x, rest, K, start.from(0, n),
                            {y.data + n, y.rows, y.cols - n, y.stride});
  else
    few_rows_tile<kRows, 1>(x, rest, K, start.from(0, n), y.data + n, y.stride, Part{y.cols - n});
}

// All rows: groups of 6, then what is left.
void all_rows(Panel x, Panel w, std::int64_t K, cpu::Start start, Matrix<float> y) {
  for (std::int64_t r = 0; r < y.rows; r += 6) {
    const auto run = [&](auto strip_of) {
      strip_of({x.data + r * x.stride, x.stride}, w, K, start.from(r, 0),
               Matrix<float>{y.row(r), y.rows - r, y.cols, y.stride});
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

}  // namespace

// One task: c = start + a b, neither transposed.
void few_rows_task(const cpu::Product<float, float>& p) {
  cpu::Start start = p.start;
  for (std::int64_t k = 0; k == 0 || k < p.K; k += kDepth) {
    const cpu::Operand<float> a = p.a.from(0, k), b = p.b.from(k, 0);
    all_rows({a.data, a.stride}, {b.data, b.stride}, std::min(kDepth, p.K - k), start, p.c);
    start = {p.c.data, p.c.stride};
  }
}

}  // namespace longstride::ops::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace longstride::ops {

HWY_EXPORT(few_rows_task);

namespace cpu {

void multiply_few_rows(const Product<float, float>& p) {
  // A task is some 2^17 multiply-adds or more: 10 us, for threads to be worth waking.
  constexpr std::int64_t kMinCols = 128, kWork = 1 << 17;
  const std::int64_t N = p.c.cols, per_col = std::max<std::int64_t>(1, p.K * p.c.rows);
  const std::int64_t cols = (kWork / per_col / kMinCols + 1) * kMinCols;
  parallel_ranges(p.c.rows == 0 ? 0 : N, cols, [&](std::int64_t begin, std::int64_t end) {
    HWY_DYNAMIC_DISPATCH(few_rows_task)
    ({p.a,
      p.b.from(0, begin),
      p.K,
      p.start.from(0, begin),
      {p.c.data + begin, p.c.rows, end - begin, p.c.stride}});
  });
}

}  // namespace cpu
}  // namespace longstride::ops
#endif  // HWY_ONCE
