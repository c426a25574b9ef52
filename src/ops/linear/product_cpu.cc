// c = start + a b, both operands packed (pack-inl.h), tile after tile of the output in registers.
//
// A tile of kTileRows x 2 vectors takes, for each k, 2 loads, kTileRows broadcasts and twice as
// many fused multiply-adds. A block is kDepth deep: its panel of b (16 KB on AVX2) stays in the
// first cache while all rows of a task pass by, those rows (some 140 KB) in the second. Sums of a
// block are added to those of the blocks before in c, or in scratch where c is bf16.
//
// Bound: compute. On AVX2 (one core of a Zen 3 at 102 Gflop/s, 2048 rows, widths of 128 to 4096)
// forward and dx reach 85 to 95 Gflop/s, dW 80 to 87. dnnl_sgemm of oneDNN 2.6 on the same shapes:
// 62 to 90, 84 to 93 and 32 to 84, low where rows lie a power of two apart and the product is too
// short or narrow for oneDNN to copy its operands.
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "ops/linear/product_cpu.cc"
#include "hwy/foreach_target.h"
// After foreach_target.h, which includes this file once per instruction set.
#include "base/integers.h"
#include "base/threads.h"
#include "hwy/cache_control.h"
#include "ops/linear/pack-inl.h"
#include "ops/linear/product.h"
#include "ops/scratch.h"

HWY_BEFORE_NAMESPACE();
namespace longstride::ops::HWY_NAMESPACE {

namespace {

using cpu::Operand, cpu::Product, cpu::Start;

// c = start + a b for a tile; a and b packed, `depth` deep.
template <bool kTransposed, class C>
HWY_INLINE void tile(const float* a, const float* b, std::int64_t depth, Start start, Matrix<C> c) {
  const Floats d;
  const std::int64_t step = float_lanes();
  for (std::int64_t r = 0; r < c.rows; ++r) hwy::Prefetch(c.row(r));
  FloatVec sum[kTileRows][2];
  for (int r = 0; r < kTileRows; ++r) sum[r][0] = sum[r][1] = hn::Zero(d);
  for (std::int64_t k = 0; k < depth; ++k) {
    const FloatVec b0 = hn::Load(d, b), b1 = hn::Load(d, b + step);
    for (int r = 0; r < kTileRows; ++r) {
      const FloatVec left = hn::Set(d, a[kTransposed ? r : r * kRow]);
      sum[r][0] = hn::MulAdd(left, b0, sum[r][0]);
      sum[r][1] = hn::MulAdd(left, b1, sum[r][1]);
    }
    a += kTransposed ? kTileRows : 1;
    b += 2 * step;
  }
  if (c.rows == kTileRows && c.cols == 2 * step) {
    for (int r = 0; r < kTileRows; ++r)
      for (int v = 0; v < 2; ++v) {
        FloatVec out = sum[r][v];
        if (start.data) out = hn::Add(out, hn::LoadU(d, start.data + r * start.stride + v * step));
        Whole{}.store(out, c.row(r) + v * step);
      }
    return;
  }
  HWY_ALIGN float edge[kTileRows][2 * hn::MaxLanes(d)];
  for (int r = 0; r < kTileRows; ++r)
    for (int v = 0; v < 2; ++v) hn::Store(sum[r][v], d, edge[r] + v * step);
  for (std::int64_t r = 0; r < c.rows; ++r)
    for (std::int64_t i = 0; i < c.cols; ++i) {
      if (start.data) edge[r][i] += start.data[r * start.stride + i];
      c.row(r)[i] = static_cast<C>(edge[r][i]);
    }
}

// The same for all tiles of c.
template <class C>
void block(const float* a, bool transposed, const float* b, std::int64_t depth, Start start,
           Matrix<C> c) {
  const std::int64_t width = tile_cols();
  for (std::int64_t n = 0; n < c.cols; n += width, b += panel_size(depth)) {
    const std::int64_t cols = std::min(width, c.cols - n);
    const float* left = a;
    for (std::int64_t r = 0; r < c.rows; r += kTileRows, left += kGroup) {
      const Matrix<C> out{c.row(r) + n, std::min(kTileRows, c.rows - r), cols, c.stride};
      if (transposed)
        tile<true>(left, b, depth, start.from(r, n), out);
      else
        tile<false>(left, b, depth, start.from(r, n), out);
    }
  }
}

inline std::int64_t blocks_in(std::int64_t depth) {
  return std::max<std::int64_t>(1, ceil_div(depth, kDepth));
}

// One task: some rows and columns of c. `packed` is b in panels, block after block, each for
// `panels` panels; the first panel of the task is `panel`.
template <class A, class C>
void product_task(const Product<A, C>& p, const float* packed, std::int64_t panels,
                  std::int64_t panel) {
  thread_local Scratch left, sums;
  float* const a = left.at_least(ceil_div(p.c.rows, kTileRows) * kGroup);
  const std::int64_t blocks = blocks_in(p.K);
  Matrix<float> partial;
  if constexpr (std::is_same_v<C, float>)
    partial = p.c;
  else if (blocks > 1)
    partial = {sums.at_least(p.c.rows * (p.c.cols + kGap)), p.c.rows, p.c.cols, p.c.cols + kGap};
  Start start = p.start;
  for (std::int64_t i = 0; i < blocks; ++i) {
    const std::int64_t k = i * kDepth, depth = std::min(kDepth, p.K - k);
    pack_left(p.a.from(0, k), p.c.rows, depth, a);
    const float* const b = packed + panels * panel_size(kDepth) * i + panel * panel_size(depth);
    if (i + 1 < blocks)
      block(a, p.a.transposed, b, depth, start, partial);
    else
      block(a, p.a.transposed, b, depth, start, p.c);
    start = {partial.data, partial.stride};
  }
}

template <class A, class C>
void product(const Product<A, C>& p) {
  // 132: whole tiles, and 2048 and 4096 rows are just below 16 and 32 times that.
  constexpr std::int64_t kRows = 132, kCols = 512, kTasks = 16, kPackCols = 256;
  const std::int64_t R = p.c.rows, N = p.c.cols, width = tile_cols();
  if (R == 0 || N == 0) return;
  const std::int64_t panels = ceil_div(N, width), blocks = blocks_in(p.K);
  thread_local Scratch right;
  float* const packed = right.at_least(blocks * panels * panel_size(kDepth));
  const std::int64_t chunks = ceil_div(N, kPackCols);
  parallel_for(p.K == 0 ? 0 : blocks * chunks, [&](std::int64_t task) {
    const std::int64_t i = task / chunks, n = task % chunks * kPackCols;
    const std::int64_t depth = std::min(kDepth, p.K - i * kDepth);
    pack_right(p.b.from(i * kDepth, n), depth, std::min(kPackCols, N - n),
               packed + panels * panel_size(kDepth) * i + n / width * panel_size(depth));
  });
  const std::int64_t down = ceil_div(R, kRows);
  std::int64_t cols = std::min(kCols, panels * width);
  while (down * ceil_div(N, cols) < kTasks && cols > 2 * width)
    cols = ceil_div(cols / 2, width) * width;
  const std::int64_t across = ceil_div(N, cols);
  parallel_for(down * across, [&](std::int64_t task) {
    const std::int64_t r = task / across * kRows, n = task % across * cols;
    Product<A, C> part{p.a.from(r, 0), p.b, p.K, p.start.from(r, n), {}};
    part.c = {p.c.row(r) + n, std::min(kRows, R - r), std::min(cols, N - n), p.c.stride};
    product_task(part, packed, panels, n / width);
  });
}

// sums[n] += sum over k of the packed b.
void add_panel_sums(const float* b, std::int64_t depth, std::int64_t cols, float* sums) {
  const std::int64_t width = tile_cols();
  for (std::int64_t n = 0; n < cols; n += width, b += panel_size(depth)) {
    HWY_ALIGN float total[2 * hn::MaxLanes(Floats())] = {};
    for (std::int64_t i = 0; i < width; i += float_lanes()) {
      FloatVec sum = hn::Zero(Floats());
      for (std::int64_t k = 0; k < depth; ++k)
        sum = hn::Add(sum, hn::Load(Floats(), b + k * width + i));
      hn::Store(sum, Floats(), total + i);
    }
    for (std::int64_t i = 0; i < std::min(width, cols - n); ++i) sums[n + i] += total[i];
  }
}

template <class A>
void gradient_tile(const cpu::GradientTile<A>& t) {
  thread_local Scratch left, right;
  float* const a = left.at_least(ceil_div(t.c.rows, kTileRows) * kGroup);
  float* const b = right.at_least(ceil_div(t.c.cols, tile_cols()) * panel_size(kDepth));
  Start start = t.start;
  for (std::int64_t r = 0; r < t.x.rows; r += kDepth) {
    const std::int64_t depth = std::min(kDepth, t.x.rows - r);
    pack_left(Operand<A>{t.x.row(r), t.x.stride, true}, t.c.rows, depth, a);
    pack_right(Operand<A>{t.dy.row(r), t.dy.stride, false}, depth, t.c.cols, b);
    block(a, true, b, depth, start, t.c);
    if (t.sums) add_panel_sums(b, depth, t.c.cols, t.sums);
    start = {t.c.data, t.c.stride};
  }
}

}  // namespace

void multiply_float(const Product<float, float>& p) { product(p); }
void multiply_widened(const Product<bf16, float>& p) { product(p); }
void multiply_bf16(const Product<bf16, bf16>& p) { product(p); }
void gradient_float(const cpu::GradientTile<float>& t) { gradient_tile(t); }
void gradient_bf16(const cpu::GradientTile<bf16>& t) { gradient_tile(t); }

void column_sums(Matrix<const bf16> dy, float* sums) {
  for (std::int64_t r = 0; r < dy.rows; ++r)
    for_vectors(dy.cols, [&](std::int64_t n, auto lanes) {
      lanes.store(hn::Add(lanes.load(sums + n), lanes.load(dy.row(r) + n)), sums + n);
    });
}

}  // namespace longstride::ops::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace longstride::ops {

HWY_EXPORT(multiply_float);
HWY_EXPORT(multiply_widened);
HWY_EXPORT(multiply_bf16);
HWY_EXPORT(gradient_float);
HWY_EXPORT(gradient_bf16);
HWY_EXPORT(column_sums);

namespace cpu {

void multiply(const Product<float, float>& p) { HWY_DYNAMIC_DISPATCH(multiply_float)(p); }
void multiply(const Product<bf16, float>& p) { HWY_DYNAMIC_DISPATCH(multiply_widened)(p); }
void multiply(const Product<bf16, bf16>& p) { HWY_DYNAMIC_DISPATCH(multiply_bf16)(p); }
void multiply_tile(const GradientTile<float>& t) { HWY_DYNAMIC_DISPATCH(gradient_float)(t); }
void multiply_tile(const GradientTile<bf16>& t) { HWY_DYNAMIC_DISPATCH(gradient_bf16)(t); }
void add_column_sums(Matrix<const bf16> dy, float* sums) {
  HWY_DYNAMIC_DISPATCH(column_sums)(dy, sums);
}

}  // namespace cpu
}  // namespace longstride::ops
#endif  // HWY_ONCE
