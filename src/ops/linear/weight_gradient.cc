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
#include "ops/linear/scratch.h"

namespace longstride::ops::cpu {

namespace {

// One task. bf16 takes the instructions for it, if there are any.
void run(const GradientTile<float>& t) { multiply_tile(t); }
void run(const GradientTile<bf16>& t) {
  if (!multiply_tile_natively(t)) return multiply_tile(t);
  if (t.sums) add_column_sums(t.dy, t.sums);
}

// dweight += the parts, in order.
void add_parts(const float* pieces, std::int64_t parts, Matrix<float> dweight) {
  constexpr std::int64_t kTasks = 16;
  const std::int64_t K = dweight.rows, N = dweight.cols;
  parallel_ranges(K, ceil_div(K, kTasks), [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t k = begin; k < end; ++k) {
      float* const out = dweight.row(k);
      for (std::int64_t part = 0; part < parts; ++part) {
        const float* const piece = pieces + (part * K + k) * N;
        for (std::int64_t n = 0; n < N; ++n) out[n] += piece[n];
      }
    }
  });
}

template <class A>
void add_gradient(const WeightGradient<A>& g) {
  constexpr std::int64_t kRows = 264, kCols = 256, kPart = 256, kTasks = 16;
  const std::int64_t R = g.x.rows, K = g.dweight.rows, N = g.dweight.cols;
  if (R == 0 || N == 0) return;
  const std::int64_t down = std::max<std::int64_t>(1, ceil_div(K, kRows));  // K = 0: db remains
  const std::int64_t across = ceil_div(N, kCols), tiles = down * across;
  const std::int64_t cuts = std::clamp<std::int64_t>(kTasks / tiles, 1, ceil_div(R, kPart));
  const std::int64_t depth = ceil_div(ceil_div(R, cuts), kPart) * kPart, parts = ceil_div(R, depth);
  thread_local Scratch partial, columns;
  float* const sums = g.dbias.empty() ? nullptr : columns.at_least(parts * N);
  if (sums) std::fill_n(sums, parts * N, 0.0f);
  float* const pieces = parts > 1 ? partial.at_least(parts * K * N) : nullptr;
  parallel_for(parts * tiles, [&](std::int64_t task) {
    const std::int64_t part = task / tiles, r = part * depth, rows = std::min(depth, R - r);
    const std::int64_t k = task / across % down * kRows, n = task % across * kCols;
    const std::int64_t height = std::min(kRows, K - k), width = std::min(kCols, N - n);
    GradientTile<A> t{{g.x.row(r) + k, rows, height, g.x.stride},
                      {g.dy.row(r) + n, rows, width, g.dy.stride},
                      {},
                      {g.dweight.row(k) + n, height, width, g.dweight.stride},
                      sums && k == 0 ? sums + part * N + n : nullptr};
    if (parts > 1)
      t.c = {pieces + (part * K + k) * N + n, height, width, N};
    else
      t.start = {t.c.data, t.c.stride};
    run(t);
  });
  if (parts > 1) add_parts(pieces, parts, g.dweight);
  for (std::int64_t part = 0; sums && part < parts; ++part)
    for (std::int64_t n = 0; n < N; ++n) g.dbias[n] += sums[part * N + n];
}

}  // namespace

void add_weight_gradient(const WeightGradient<float>& g) { add_gradient(g); }
void add_weight_gradient(const WeightGradient<bf16>& g) { add_gradient(g); }

}  // namespace longstride::ops::cpu
