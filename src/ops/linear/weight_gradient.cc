// dW += x^T dy and db += column sums of dy: a short output with a long inner dimension. Tasks are
// tiles of dW, and where those are few for many threads, parts of the rows as well: their sums are
// kept apart and added in order.
//
// Bound: compute; the partial sums cost some 5 % where each part has 256 rows.
#include <algorithm>

#include "base/integers.h"
#include "base/threads.h"
#include "ops/linear/native.h"
#include "ops/linear/product.h"
#include "ops/scratch.h"

namespace longstride::ops::cpu {

namespace {

// One task. bf16 takes the instructions for it, if there are any.
void run(const GradientTile<float>& t) { multiply_tile(t); }
void run(const GradientTile<bf16>& t) {
  if (!multiply_tile_natively(t)) return multiply_tile(t);
  if (t.sums) add_column_sums(t.dy, t.sums);
}

// Partial sums of one part of the rows: tiles side by side, each dense.
struct Tiles {
  std::int64_t rows, cols;  // of a tile
  std::int64_t K, N;        // of the whole

  std::int64_t height(std::int64_t k) const { return std::min(rows, K - k); }
  std::int64_t width(std::int64_t n) const { return std::min(cols, N - n); }
  // The tile that begins at (k, n).
  std::int64_t offset(std::int64_t k, std::int64_t n) const { return k * N + height(k) * n; }
};

// dweight += the parts, in order.
void add_parts(const float* pieces, std::int64_t parts, const Tiles& tiles, Matrix<float> dweight) {
  constexpr std::int64_t kTasks = 16;
  parallel_ranges(
      tiles.K, ceil_div(tiles.K + 1, kTasks), [&](std::int64_t begin, std::int64_t end) {
        for (std::int64_t k = begin; k < end; ++k)
          for (std::int64_t n = 0; n < tiles.N; n += tiles.cols) {
            const std::int64_t top = k / tiles.rows * tiles.rows, width = tiles.width(n);
            float* const out = dweight.row(k) + n;
            for (std::int64_t part = 0; part < parts; ++part) {
              const float* const piece =
                  pieces + part * tiles.K * tiles.N + tiles.offset(top, n) + (k - top) * width;
              for (std::int64_t i = 0; i < width; ++i) out[i] += piece[i];
            }
          }
      });
}

template <class A>
void add_gradient(const WeightGradient<A>& g) {
  constexpr std::int64_t kRows = std::is_same_v<A, float> ? 264 : 256;  // 264: whole tiles of 12
  constexpr std::int64_t kCols = 512, kPart = 256, kTasks = 32;
  const std::int64_t R = g.x.rows, K = g.dweight.rows, N = g.dweight.cols;
  if (R == 0 || N == 0) return;
  const std::int64_t down = std::max<std::int64_t>(1, ceil_div(K, kRows));  // K = 0: db remains
  const std::int64_t across = ceil_div(N, kCols), count = down * across;
  const Tiles tiles{kRows, kCols, K, N};
  const std::int64_t cuts = std::clamp<std::int64_t>(kTasks / count, 1, ceil_div(R, kPart));
  const std::int64_t depth = ceil_div(ceil_div(R, cuts), kPart) * kPart, parts = ceil_div(R, depth);
  thread_local Scratch partial, columns;
  float* const sums = g.dbias.empty() ? nullptr : columns.at_least(parts * N);
  if (sums) std::fill_n(sums, parts * N, 0.0f);
  float* const pieces = parts > 1 ? partial.at_least(parts * K * N) : nullptr;
  parallel_for(parts * count, [&](std::int64_t task) {
    const std::int64_t part = task / count, r = part * depth, rows = std::min(depth, R - r);
    const std::int64_t k = task / across % down * kRows, n = task % across * kCols;
    const std::int64_t height = tiles.height(k), width = tiles.width(n);
    GradientTile<A> t{{g.x.row(r) + k, rows, height, g.x.stride},
                      {g.dy.row(r) + n, rows, width, g.dy.stride},
                      {},
                      {g.dweight.row(k) + n, height, width, g.dweight.stride},
                      sums && k == 0 ? sums + part * N + n : nullptr};
    if (parts > 1)
      t.c = matrix(pieces + part * K * N + tiles.offset(k, n), height, width);
    else
      t.start = {t.c.data, t.c.stride};
    run(t);
  });
  if (parts > 1) add_parts(pieces, parts, tiles, g.dweight);
  for (std::int64_t part = 0; sums && part < parts; ++part)
    for (std::int64_t n = 0; n < N; ++n) g.dbias[n] += sums[part * N + n];
}

}  // namespace

void add_weight_gradient(const WeightGradient<float>& g) { add_gradient(g); }
void add_weight_gradient(const WeightGradient<bf16>& g) { add_gradient(g); }

}  // namespace longstride::ops::cpu
