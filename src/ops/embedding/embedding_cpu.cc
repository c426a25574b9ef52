// The loops of embedding_ref.h, threaded: rows are independent forward, columns backward.
// Bound: memory, 4 (1 + tables) bytes an element.
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
  parallel_ranges(op.dy.cols, kColumns, [&](std::int64_t begin, std::int64_t end) {
    ref::embedding_backward_columns(op, begin, end);
  });
}

}  // namespace longstride::ops::cpu
