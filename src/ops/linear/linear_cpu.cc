// linear.h in matrix products.
#include "ops/linear/linear.h"
#include "ops/linear/native.h"
#include "ops/linear/product.h"

namespace longstride::ops::cpu {

namespace {

void run(const Product<float, float>& p) { multiply(p); }

// bf16 takes the instructions for it, if there are any.
template <class C>
void run(const Product<bf16, C>& p) {
  if (!multiply_natively(p)) multiply(p);
}

template <class A, class Y>
Product<A, Y> forward(const Linear<A, Y>& op) {
  return {{op.x.data, op.x.stride, false},
          {op.weight.data, op.weight.stride, false},
          op.x.cols,
          {op.bias.empty() ? nullptr : op.bias.data, 0},
          op.y};
}

template <class A, class D>
void backward(const LinearBackward<A, D>& op) {
  if (!op.dx.empty()) {
    Start start;
    if constexpr (std::is_same_v<D, float>)
      if (op.add_to_dx) start = {op.dx.data, op.dx.stride};
    run(Product<A, D>{{op.dy.data, op.dy.stride, false},
                      {op.weight.data, op.weight.stride, true},
                      op.dy.cols,
                      start,
                      op.dx});
  }
  add_weight_gradient(WeightGradient<A>{op.x, op.dy, op.dweight, op.dbias});
}

}  // namespace

void linear_forward(const Linear<float>& op) {
  constexpr std::int64_t kFewRows = 32;  // up to here packing W costs more than it saves
  if (op.x.rows <= kFewRows) return multiply_few_rows(forward(op));
  run(forward(op));
}
void linear_forward(const Linear<bf16>& op) { run(forward(op)); }
void linear_forward(const Linear<bf16, float>& op) { run(forward(op)); }

void linear_backward(const LinearBackward<float>& op) { backward(op); }
void linear_backward(const LinearBackward<bf16>& op) { backward(op); }
void linear_backward(const LinearBackward<bf16, float>& op) { backward(op); }

}  // namespace longstride::ops::cpu
