#include "ops/adamw/adamw.h"

#include "ops/adamw/adamw_ref.h"
#include "ops/shape.h"

namespace longstride::ops {

namespace {

void check_ranges(const std::vector<DecayRange>& decayed, std::int64_t size) {
  std::int64_t last = 0;
  for (const DecayRange& range : decayed) {
    if (range.begin < last || range.end < range.begin || range.end > size)
      throw invalid_argument("adamw: decayed range [", range.begin, ", ", range.end,
                             "), want it ascending within [", last, ", ", size, ")");
    last = range.end;
  }
}

template <class T>
void check(const AdamW<T>& op) {
  const std::int64_t size = op.weights.size;
  want_size("adamw", "weights", op.weights, size);
  want_size("adamw", "grad", op.grad, size);
  want_size("adamw", "m", op.m, size);
  want_size("adamw", "v", op.v, size);
  if (!op.average.empty()) want_size("adamw", "average", op.average, size);
  if (op.step < 1) throw invalid_argument("adamw: step is ", op.step, ", want 1 or more");
  for (const double beta : {op.beta1, op.beta2})
    if (!(beta >= 0 && beta < 1))
      throw invalid_argument("adamw: beta is ", beta, ", want 0 <= beta < 1");
  if (op.decayed != nullptr) check_ranges(*op.decayed, size);
}

}  // namespace

void adamw(const AdamW<float>& op) {
  check(op);
  cpu::adamw(op);
}

void adamw(const AdamW<double>& op) {
  check(op);
  ref::adamw(op);
}

double global_norm(Vector<const float> x) {
  want_size("global_norm", "x", x, x.size);
  return cpu::global_norm(x);
}

double global_norm(Vector<const double> x) {
  want_size("global_norm", "x", x, x.size);
  return ref::global_norm(x);
}

}  // namespace longstride::ops
