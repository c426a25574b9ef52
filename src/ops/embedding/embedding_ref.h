// The formula of embedding.h, in any precision, and its walk over rows, which the threaded version
// shares: it runs the same loops on a range of rows (forward) or columns (backward).
#pragma once

#include <algorithm>

#include "ops/embedding/embedding.h"

namespace longstride::ops::ref {

// Calls add(table, row) for every axis: where position i stands on it. The last axis is fastest.
template <class MatrixT, class Add>
void for_axes(const std::vector<MatrixT>& axes, std::int64_t i, const Add& add) {
  for (auto axis = axes.rbegin(); axis != axes.rend(); ++axis) {
    add(*axis, i % axis->rows);
    i /= axis->rows;
  }
}

// Rows [begin, end) of y.
template <class Real>
void embedding_rows(const Embedding<Real>& op, std::int64_t begin, std::int64_t end) {
  const std::int64_t d = op.y.cols;
  for (std::int64_t r = begin; r < end; ++r) {
    const std::int64_t b = r / op.length, position = op.first + r % op.length;
    Real* const y = op.y.row(r);
    if (position == 0) {
      std::copy_n(op.start.data, d, y);
      continue;
    }
    const std::uint8_t byte = r % op.length > 0 ? op.tokens[r - 1] : op.previous[b];
    std::copy_n(op.bytes.row(byte), d, y);
    for_axes(op.axes, position - 1, [&](Matrix<const Real> table, std::int64_t at) {
      const Real* const p = table.row(at);
      for (std::int64_t c = 0; c < d; ++c) y[c] += p[c];
    });
  }
}

// Columns [begin, end) of all gradients, rows in order.
template <class Real>
void embedding_backward_columns(const EmbeddingBackward<Real>& op, std::int64_t begin,
                                std::int64_t end) {
  for (std::int64_t r = 0; r < op.batch * op.length; ++r) {
    const std::int64_t position = r % op.length;
    const Real* const dy = op.dy.row(r);
    const auto add_to = [&](Real* into) {
      for (std::int64_t c = begin; c < end; ++c) into[c] += dy[c];
    };
    if (position == 0) {
      add_to(op.dstart.data);
      continue;
    }
    add_to(op.dbytes.row(op.tokens[r - 1]));
    for_axes(op.daxes, position - 1,
             [&](Matrix<Real> table, std::int64_t at) { add_to(table.row(at)); });
  }
}

template <class Real>
void embedding(const Embedding<Real>& op) {
  embedding_rows(op, 0, op.batch * op.length);
}

template <class Real>
void embedding_backward(const EmbeddingBackward<Real>& op) {
  embedding_backward_columns(op, 0, op.dy.cols);
}

}  // namespace longstride::ops::ref
