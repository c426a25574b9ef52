#include "ops/residual/residual.h"

#include "ops/residual/residual_ref.h"
#include "ops/shape.h"

namespace longstride::ops {

namespace {

template <class T>
void want_contiguous(const char* who, const char* name, Matrix<T> m, std::int64_t rows,
                     std::int64_t cols) {
  want_shape(who, name, m, rows, cols);
  if (!m.contiguous())
    throw invalid_argument(who, ": ", name, " has a row stride of ", m.stride, ", want ", cols);
}

void check_dropout(const char* who, const Dropout& dropout) {
  if (!(dropout.p >= 0 && dropout.p < 1))
    throw invalid_argument(who, ": dropout probability is ", dropout.p, ", want 0 <= p < 1");
  if (dropout.first_row < 0)
    throw invalid_argument(who, ": first_row is ", dropout.first_row, ", want 0 or more");
}

template <class T, class A>
void check(const Residual<T, A>& op) {
  const std::int64_t R = op.x.rows, C = op.x.cols;
  want_contiguous("residual", "x", op.x, R, C);
  want_contiguous("residual", "h", op.h, R, C);
  want_contiguous("residual", "y", op.y, R, C);
  check_dropout("residual", op.dropout);
}

template <class T, class A>
void check(const ResidualBackward<T, A>& op) {
  const std::int64_t R = op.dy.rows, C = op.dy.cols;
  want_contiguous("residual_backward", "dy", op.dy, R, C);
  want_contiguous("residual_backward", "dx", op.dx, R, C);
  check_dropout("residual_backward", op.dropout);
}

}  // namespace

void residual(const Residual<float>& op) {
  check(op);
  cpu::residual(op);
}

void residual(const Residual<double>& op) {
  check(op);
  ref::residual(op);
}

void residual(const Residual<float, bf16>& op) {
  check(op);
  cpu::residual(op);
}

void residual_backward(const ResidualBackward<float>& op) {
  check(op);
  cpu::residual_backward(op);
}

void residual_backward(const ResidualBackward<double>& op) {
  check(op);
  ref::residual_backward(op);
}

void residual_backward(const ResidualBackward<float, bf16>& op) {
  check(op);
  cpu::residual_backward(op);
}

}  // namespace longstride::ops
