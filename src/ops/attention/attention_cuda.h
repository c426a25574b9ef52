// Attention over the pairs that a plan keeps, on the GPU; formulas in attention.h. Rows are read in
// place, whatever the part: no transposed copies, no block mask, no atomics.
#pragma once

#include <cstdint>
#include <memory>

#include "device/cuda.h"
#include "pattern/plan.h"
#include "tensor/bf16.h"
#include "tensor/fp16.h"
#include "tensor/tensor.h"

namespace longstride::ops::cuda {

// What kernels need of an AttentionPlan, on the device. Cheap for named parts.
class DevicePlan {
 public:
  explicit DevicePlan(const AttentionPlan& plan);
  ~DevicePlan();
  DevicePlan(DevicePlan&&) noexcept;
  std::int64_t bytes() const;  // of device memory

  struct State;
  const State& state() const { return *state_; }

 private:
  std::unique_ptr<State> state_;
};

// A: bf16, fp16 (scores, softmax and sums in float), or float (no tensor cores, for exactness).
// Widths of a head: 1 to 256; row strides and widths that are multiples of 8 and addresses that are
// multiples of 16 bytes are fast. length <= plan's length.
template <class A>
struct Attention {
  const DevicePlan* plan = nullptr;
  Heads<const A> q, k;  // [B, N, H, d_qk]
  Heads<const A> v;     // [B, N, H, d_v]
  Heads<A> out;         // [B, N, H, d_v], overwritten
  Vector<float> lse;    // [B, H, N], overwritten
  float scale = 1;
};
template <class A>
void attention(device::Stream stream, const Attention<A>& op);

template <class A>
struct AttentionBackward {
  const DevicePlan* plan = nullptr;
  Heads<const A> q, k, v, out, dout;
  Vector<const float> lse;  // [B, H, N]
  Heads<A> dq, dk, dv;      // overwritten; may be parts of one row each, as q, k, v are
  Vector<float> scratch;    // attention_backward_scratch() floats, content arbitrary
  float scale = 1;
};
template <class A>
std::int64_t attention_backward_scratch(const AttentionBackward<A>& op);  // from shapes alone
template <class A>
void attention_backward(device::Stream stream, const AttentionBackward<A>& op);

}  // namespace longstride::ops::cuda
