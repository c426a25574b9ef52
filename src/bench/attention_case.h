// One attention to be timed: arrays [B, N, H, D] in the precision A (float or bf16) and its plan.
#pragma once

#include <cmath>
#include <string>

#include "bench/measure.h"
#include "longstride/pattern.h"
#include "ops/attention/attention.h"
#include "pattern/plan.h"

namespace longstride::bench {

struct AttentionShape {
  std::int64_t batch, heads, length, width;
  std::int64_t values() const { return batch * heads * length * width; }
};

template <class A>
class AttentionCase {
 public:
  explicit AttentionCase(const AttentionShape& shape)
      : shape_(shape),
        q_(random_values_as<A>(shape.values(), 1)),
        k_(random_values_as<A>(shape.values(), 2)),
        v_(random_values_as<A>(shape.values(), 3)),
        dout_(random_values_as<A>(shape.values(), 4)),
        out_(shape.values()),
        lse_(shape.batch * shape.heads * shape.length),
        dq_(shape.values()),
        dk_(shape.values()),
        dv_(shape.values()) {}

  void set_pattern(const std::string& spec) {
    plan_ = AttentionPlan(parse_pattern(spec).heads(shape_.heads), shape_.length);
  }
  const AttentionPlan& plan() const { return plan_; }
  const AttentionShape& shape() const { return shape_; }

  void forward() const {
    ops::attention(ops::Attention<A>{.plan = &plan_,
                                     .q = heads(q_),
                                     .k = heads(k_),
                                     .v = heads(v_),
                                     .out = heads(out_),
                                     .lse = lse_.vector(),
                                     .scale = scale()});
  }
  void backward() const {  // after forward()
    ops::attention_backward(ops::AttentionBackward<A>{.plan = &plan_,
                                                      .q = heads(q_),
                                                      .k = heads(k_),
                                                      .v = heads(v_),
                                                      .out = heads(out_),
                                                      .dout = heads(dout_),
                                                      .lse = lse_.vector(),
                                                      .dq = heads(dq_),
                                                      .dk = heads(dk_),
                                                      .dv = heads(dv_),
                                                      .scale = scale()});
  }

 private:
  float scale() const { return 1 / std::sqrt(static_cast<float>(shape_.width)); }
  template <class T>
  Heads<T> heads(const Buffer<T>& b) const {
    const AttentionShape& s = shape_;
    return {b.data(), s.batch, s.length, s.heads, s.width, s.heads * s.width};
  }

  AttentionShape shape_;
  AttentionPlan plan_;
  Buffer<A> q_, k_, v_, dout_, out_;
  Buffer<float> lse_, dq_, dk_, dv_;
};

}  // namespace longstride::bench
