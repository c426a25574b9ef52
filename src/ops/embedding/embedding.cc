#include "ops/embedding/embedding.h"

#include "ops/embedding/embedding_ref.h"
#include "ops/shape.h"

namespace longstride::ops {

namespace {

// Every table is [extent, d], and together they hold `positions` of them.
template <class MatrixT>
void check_axes(const char* who, const std::vector<MatrixT>& axes, std::int64_t d,
                std::int64_t positions) {
  std::int64_t held = 1;
  for (const MatrixT& axis : axes) {
    if (axis.rows < 1)
      throw invalid_argument(who, ": an axis has extent ", axis.rows, ", want 1 or more");
    want_shape(who, "axis table", axis, axis.rows, d);
    if (held < positions) held *= axis.rows;  // stops before it could overflow
  }
  if (held < positions)
    throw invalid_argument(who, ": the axes hold ", held, " positions, want ", positions);
}

void check_tokens(const char* who, const std::uint8_t* tokens, std::int64_t batch,
                  std::int64_t length) {
  if (batch < 0 || length < 0)
    throw invalid_argument(who, ": batch ", batch, " and length ", length, ", want 0 or more");
  if (tokens == nullptr && batch > 0 && length > 1)
    throw invalid_argument(who, ": no tokens for batch ", batch, " of length ", length);
}

template <class T>
void check(const Embedding<T>& op) {
  const std::int64_t d = op.y.cols;
  check_tokens("embedding", op.tokens, op.batch, op.length);
  if (op.first < 0) throw invalid_argument("embedding: first is ", op.first, ", want 0 or more");
  if (op.first > 0 && op.previous == nullptr && op.batch > 0 && op.length > 0)
    throw invalid_argument("embedding: first is ", op.first, " but previous has no memory");
  want_shape("embedding", "y", op.y, op.batch * op.length, d);
  want_shape("embedding", "bytes", op.bytes, 256, d);
  want_size("embedding", "start", op.start, d);
  check_axes("embedding", op.axes, d, op.first + op.length - 1);
}

template <class T>
void check(const EmbeddingBackward<T>& op) {
  const std::int64_t d = op.dy.cols;
  check_tokens("embedding_backward", op.tokens, op.batch, op.length);
  want_shape("embedding_backward", "dy", op.dy, op.batch * op.length, d);
  want_shape("embedding_backward", "dbytes", op.dbytes, 256, d);
  want_size("embedding_backward", "dstart", op.dstart, d);
  check_axes("embedding_backward", op.daxes, d, op.length - 1);
}

}  // namespace

void embedding(const Embedding<float>& op) {
  check(op);
  cpu::embedding(op);
}

void embedding(const Embedding<double>& op) {
  check(op);
  ref::embedding(op);
}

void embedding_backward(const EmbeddingBackward<float>& op) {
  check(op);
  cpu::embedding_backward(op);
}

void embedding_backward(const EmbeddingBackward<double>& op) {
  check(op);
  ref::embedding_backward(op);
}

}  // namespace longstride::ops
