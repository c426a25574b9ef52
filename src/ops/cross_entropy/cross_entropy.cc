#include "ops/cross_entropy/cross_entropy.h"

#include "ops/cross_entropy/cross_entropy_ref.h"
#include "ops/shape.h"

namespace longstride::ops {

namespace {

template <class T, class A>
void check(const CrossEntropy<T, A>& op) {
  const std::int64_t R = op.logits.rows, V = op.logits.cols;
  if (V < 1) throw invalid_argument("cross_entropy: logits are ", R, "x", V, ", want a column");
  want_shape("cross_entropy", "logits", op.logits, R, V);
  want_size("cross_entropy", "nats", op.nats, R);
  if (!op.dlogits.empty()) want_shape("cross_entropy", "dlogits", op.dlogits, R, V);
  if (op.targets == nullptr && R > 0)
    throw invalid_argument("cross_entropy: no targets for ", R, " rows");
  for (std::int64_t r = 0; r < R; ++r)
    if (op.targets[r] >= V)
      throw invalid_argument("cross_entropy: target ", int{op.targets[r]}, " of row ", r,
                             ", want less than ", V);
}

}  // namespace

void cross_entropy(const CrossEntropy<float>& op) {
  check(op);
  cpu::cross_entropy(op);
}

void cross_entropy(const CrossEntropy<double>& op) {
  check(op);
  ref::cross_entropy(op);
}

void cross_entropy(const CrossEntropy<float, bf16>& op) {
  check(op);
  cpu::cross_entropy(op);
}

}  // namespace longstride::ops
