// The formula of embedding.h, in any precision, and its walk over rows, which the threaded version
// shares: it runs the same loops on a range of rows (forward) or columns of a table (backward).
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

// Columns [begin, end) of the gradient of one table, rows in order: table 0 is `bytes` (and start),
// table a > 0 axis a - 1.
template <class Real>
void embedding_backward_table(const EmbeddingBackward<Real>& op, std::size_t table,
                              std::int64_t begin, std::int64_t end) {
  std::int64_t below = 1;  // positions in a row of the axis
  for (std::size_t axis = table; axis < op.daxes.size(); ++axis) below *= op.daxes[axis].rows;
  for (std::int64_t r = 0; r < op.batch * op.length; ++r) {
    const std::int64_t position = r % op.length;
    Real* into = nullptr;
    if (table > 0 && position > 0)
      into = op.daxes[table - 1].row((position - 1) / below % op.daxes[table - 1].rows);
    else if (table == 0)
      into = position > 0 ? op.dbytes.row(op.tokens[r - 1]) : op.dstart.data;
    const Real* const dy = op.dy.row(r);
    for (std::int64_t c = begin; into && c < end; ++c) into[c] += dy[c];
  }
}

template <class Real>
void embedding(const Embedding<Real>& op) {
  embedding_rows(op, 0, op.batch * op.length);
}

template <class Real>
void embedding_backward(const EmbeddingBackward<Real>& op) {
  for (std::size_t table = 0; table <= op.daxes.size(); ++table)
    embedding_backward_table(op, table, 0, op.dy.cols);
}

}  // namespace longstride::ops::ref
