// Matrix products by oneDNN, on tiles of the output that are a function of the shape alone. One
// task computes a tile with one single-threaded call over the whole inner dimension, so neither the
// thread count nor the order of the tasks can change a sum.
//
// Bound: compute. Each tile reads its operands anew; at 256x256 that is 1/64 of a load per
// multiply-add.
#include <dnnl.h>

#include <algorithm>
#include <vector>

#include "base/integers.h"
#include "base/threads.h"
#include "longstride/error.h"
#include "ops/linear/linear.h"

namespace longstride::ops::cpu {

namespace {

constexpr std::int64_t kRows = 64;       // of a tile, at least
constexpr std::int64_t kBiasRows = 256;  // rows in one partial sum of dbias

struct Operand {
  const float* data;
  std::int64_t stride;
  bool transposed;

  // The part that tile rows (or columns) from `at` on need.
  const float* from_row(std::int64_t at) const { return data + (transposed ? at : at * stride); }
  const float* from_col(std::int64_t at) const { return data + (transposed ? at * stride : at); }
  char flag() const { return transposed ? 'T' : 'N'; }
};

struct Tile {
  std::int64_t rows, cols;
};

// n cut into equal parts of at least `size`.
std::int64_t equal_part(std::int64_t n, std::int64_t size) {
  return ceil_div(ceil_div(n, std::max<std::int64_t>(1, n / size)), 16) * 16;
}

// From a certain size on (1 / rows + 1 / cols < 0.0038 in oneDNN 2.6) a product copies its operands
// into panels first and is up to a third faster, above all where rows are a power of two apart. So:
// tiles of that size where the matrix has enough of them, else small ones that keep many threads
// busy.
Tile tile_for(std::int64_t rows, std::int64_t cols) {
  constexpr std::int64_t kCopyRows = 576, kCopyCols = 512, kCopyTasks = 6, kTasks = 16;
  if (rows / kCopyRows * (cols / kCopyCols) >= kCopyTasks)
    return {equal_part(rows, kCopyRows), equal_part(cols, kCopyCols)};
  Tile tile{std::min<std::int64_t>(rows, 128), std::min<std::int64_t>(cols, 512)};
  while (tile.cols > 128 && ceil_div(rows, tile.rows) * ceil_div(cols, tile.cols) < kTasks)
    tile.cols = ceil_div(tile.cols, 32) * 16;
  if (ceil_div(rows, tile.rows) * ceil_div(cols, tile.cols) < kTasks)
    tile.rows = std::min(rows, kRows);
  return tile;
}

// Rows of bias, or zeros where it is empty.
void fill(Matrix<float> c, const float* bias) {
  for (std::int64_t r = 0; r < c.rows; ++r)
    if (bias)
      std::copy_n(bias, c.cols, c.row(r));
    else
      std::fill_n(c.row(r), c.cols, 0.0f);
}

// What c holds before the product is added to it.
struct Start {
  bool kept = false;            // c itself
  const float* bias = nullptr;  // this in each row; zeros where there is neither
};

// c = start + a b, inner dimension K.
void multiply(Operand a, Operand b, std::int64_t K, Start start, Matrix<float> c) {
  if (c.rows == 0 || c.cols == 0) return;
  const Tile tile = tile_for(c.rows, c.cols);
  const std::int64_t tiles_down = ceil_div(c.rows, tile.rows);
  const std::int64_t tiles_across = ceil_div(c.cols, tile.cols);
  parallel_for(tiles_down * tiles_across, [&](std::int64_t task) {
    const std::int64_t row = task / tiles_across * tile.rows;
    const std::int64_t col = task % tiles_across * tile.cols;
    const std::int64_t rows = std::min(tile.rows, c.rows - row);
    const std::int64_t cols = std::min(tile.cols, c.cols - col);
    const Matrix<float> out{c.row(row) + col, rows, cols, c.stride};
    const bool filled = !start.kept && (start.bias || K == 0);
    if (filled) fill(out, start.bias ? start.bias + col : nullptr);
    if (K == 0) return;
    const dnnl_status_t status = dnnl_sgemm(
        a.flag(), b.flag(), rows, cols, K, 1.0f, a.from_row(row), a.stride, b.from_col(col),
        b.stride, filled || start.kept ? 1.0f : 0.0f, out.data, out.stride);
    if (status != dnnl_success)
      throw internal_error("linear: oneDNN refused a product of ", rows, "x", K, "x", cols,
                           " with status ", static_cast<int>(status));
  });
}

// dbias[n] += sum over rows: pieces of kBiasRows rows side by side, then the pieces in order.
void add_column_sums(Matrix<const float> dy, Vector<float> dbias) {
  const std::int64_t N = dy.cols, parts = ceil_div(dy.rows, kBiasRows);
  thread_local std::vector<float> scratch;
  scratch.assign(static_cast<std::size_t>(parts * N), 0.0f);
  float* const sums = scratch.data();
  parallel_for(parts, [&](std::int64_t p) {
    float* const sum = sums + p * N;
    const std::int64_t end = std::min(dy.rows, (p + 1) * kBiasRows);
    for (std::int64_t r = p * kBiasRows; r < end; ++r) {
      const float* const row = dy.row(r);
      for (std::int64_t n = 0; n < N; ++n) sum[n] += row[n];
    }
  });
  for (std::int64_t p = 0; p < parts; ++p)
    for (std::int64_t n = 0; n < N; ++n) dbias[n] += sums[p * N + n];
}

}  // namespace

void linear_forward(const Linear<float>& op) {
  multiply({op.x.data, op.x.stride, false}, {op.weight.data, op.weight.stride, false}, op.x.cols,
           {.bias = op.bias.empty() ? nullptr : op.bias.data}, op.y);
}

void linear_backward(const LinearBackward<float>& op) {
  const std::int64_t R = op.x.rows, N = op.dy.cols;
  if (!op.dx.empty())
    multiply({op.dy.data, op.dy.stride, false}, {op.weight.data, op.weight.stride, true}, N,
             {.kept = op.add_to_dx}, op.dx);
  multiply({op.x.data, op.x.stride, true}, {op.dy.data, op.dy.stride, false}, R, {.kept = true},
           op.dweight);
  if (!op.dbias.empty()) add_column_sums(op.dy, op.dbias);
}

}  // namespace longstride::ops::cpu
