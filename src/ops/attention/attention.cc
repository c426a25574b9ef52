#include "ops/attention/attention.h"

#include <cmath>
#include <type_traits>

#include "longstride/error.h"
#include "ops/attention/attention_amx.h"
#include "ops/attention/attention_cpu.h"
#include "ops/shape.h"

namespace longstride::ops {

namespace {

template <class T, class Q>
void check_heads(const char* who, const char* name, const Heads<const T>& x, const Heads<Q>& q,
                 std::int64_t width) {
  if (x.batch != q.batch || x.length != q.length || x.heads != q.heads || x.width != width)
    throw invalid_argument(who, ": ", name, " is [", x.batch, ", ", x.length, ", ", x.heads, ", ",
                           x.width, "], want [", q.batch, ", ", q.length, ", ", q.heads, ", ",
                           width, "]");
  if (x.row_stride < x.heads * x.width)
    throw invalid_argument(who, ": ", name, " has row stride ", x.row_stride, ", want at least ",
                           x.heads * x.width);
  if (x.data == nullptr && x.batch * x.length > 0)
    throw invalid_argument(who, ": ", name, " has no data");
}

// What forward and backward have in common.
template <class T>
void check(const char* who, const AttentionPlan* plan, const Heads<const T>& q,
           const Heads<const T>& k, const Heads<const T>& v, Vector<const Accumulated<T>> lse,
           Accumulated<T> scale) {
  if (plan == nullptr) throw invalid_argument(who, ": no plan");
  if (q.batch < 0 || q.length < 0 || q.heads < 1 || q.width < 1 || v.width < 1)
    throw invalid_argument(who, ": q is [", q.batch, ", ", q.length, ", ", q.heads, ", ", q.width,
                           "] and v has width ", v.width, ", want heads and widths of at least 1");
  if (static_cast<std::int64_t>(plan->kind_of_head.size()) != q.heads)
    throw invalid_argument(who, ": the plan has ", plan->kind_of_head.size(), " heads, q has ",
                           q.heads);
  if (plan->length < q.length)
    throw invalid_argument(who, ": the plan is for length ", plan->length, ", q has ", q.length);
  if (!std::isfinite(scale)) throw invalid_argument(who, ": scale is ", scale, ", want a number");
  check_heads<T>(who, "q", q, q, q.width);
  check_heads<T>(who, "k", k, q, q.width);
  check_heads<T>(who, "v", v, q, v.width);
  want_size(who, "lse", lse, q.batch * q.heads * q.length);
}

template <class T>
void run(const Attention<T>& op) {
  if constexpr (std::is_same_v<T, bf16>)
    if (cpu::amx_available()) return cpu::attention_amx(op);
  cpu::attention(op);
}

template <class T>
void run(const AttentionBackward<T>& op) {
  if constexpr (std::is_same_v<T, bf16>)
    if (cpu::amx_available()) return cpu::attention_backward_amx(op);
  cpu::attention_backward(op);
}

template <class T>
void forward(const Attention<T>& op) {
  const char* who = "attention";
  check<T>(who, op.plan, op.q, op.k, op.v, op.lse, op.scale);
  check_heads<T>(who, "out", op.out, op.q, op.v.width);
  run(op);
}

template <class T>
void backward(const AttentionBackward<T>& op) {
  using Sum = Accumulated<T>;
  const char* who = "attention_backward";
  check<T>(who, op.plan, op.q, op.k, op.v, op.lse, op.scale);
  check_heads<T>(who, "out", op.out, op.q, op.v.width);
  check_heads<T>(who, "dout", op.dout, op.q, op.v.width);
  check_heads<Sum>(who, "dq", op.dq, op.q, op.q.width);
  check_heads<Sum>(who, "dk", op.dk, op.q, op.q.width);
  check_heads<Sum>(who, "dv", op.dv, op.q, op.v.width);
  run(op);
}

}  // namespace

void attention(const Attention<float>& op) { forward(op); }
void attention(const Attention<bf16>& op) { forward(op); }
void attention(const Attention<double>& op) { forward(op); }
void attention_backward(const AttentionBackward<float>& op) { backward(op); }
void attention_backward(const AttentionBackward<bf16>& op) { backward(op); }
void attention_backward(const AttentionBackward<double>& op) { backward(op); }

}  // namespace longstride::ops
