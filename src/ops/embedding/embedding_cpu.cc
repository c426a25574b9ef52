// The loops of embedding_ref.h, threaded: rows are independent forward, columns and tables
// backward.
// Bound: memory, 4 (1 + tables) bytes an element.
#include "base/integers.h"
#include "base/threads.h"
#include "ops/embedding/embedding_ref.h"

namespace longstride::ops::cpu {

void embedding(const Embedding<float>& op) {
  constexpr std::int64_t kRows = 64;
  parallel_ranges(op.y.rows, kRows, [&](std::int64_t begin, std::int64_t end) {
    ref::embedding_rows(op, begin, end);
  });
}

void embedding_backward(const EmbeddingBackward<float>& op) {
  constexpr std::int64_t kColumns = 64;  // wide enough for whole cache lines in a row
  const auto tables = static_cast<std::int64_t>(op.daxes.size()) + 1;
  parallel_for(tables * ceil_div(op.dy.cols, kColumns), [&](std::int64_t task) {
    const std::int64_t begin = task / tables * kColumns;
    ref::embedding_backward_table(op, static_cast<std::size_t>(task % tables), begin,
                                  std::min(op.dy.cols, begin + kColumns));
  });
}

}  // namespace longstride::ops::cpu
