// The activation, a vector at a time.
// Work: about 20 instructions a vector, one of them a division. Bytes an element: 8 forward, 12
// backward (4 and 6 in bf16). Bound: memory; in the caches, arithmetic.
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "ops/activation/activation_cpu.cc"
#include "hwy/foreach_target.h"
// After foreach_target.h, which includes this file once per instruction set.
#include <cstdint>

#include "base/threads.h"
#include "ops/activation/activation.h"
#include "ops/simd.h"

HWY_BEFORE_NAMESPACE();
namespace longstride::ops::HWY_NAMESPACE {

namespace {

// z = 1.702 x and e = exp(z), both cut off where e drowns 1: sigmoid = e / (1 + e) there is 1, and
// 1 - sigmoid = 1 / (1 + e) times z is nothing beside 1. Far to the left both keep their digits.
struct Logistic {
  FloatVec z, e;
};
HWY_INLINE Logistic logistic(FloatVec x) {
  const Floats d;
  const FloatVec z = at_most(d, 21.0f, hn::Mul(hn::Set(d, 1.702f), x));
  return {z, at_most(d, 0x1.0p30f, exp(d, z))};
}

template <class A>
HWY_INLINE void forward(const A* x, A* y, std::int64_t n) {
  const FloatVec one = hn::Set(Floats(), 1.0f);
  for_vectors(n, [&](std::int64_t i, auto lanes) {
    const FloatVec v = lanes.load(x + i), e = logistic(v).e;
    lanes.store(hn::Mul(v, hn::Div(e, hn::Add(one, e))), y + i);
  });
}

template <class A>
HWY_INLINE void backward(const A* x, const A* dy, A* dx, std::int64_t n) {
  const FloatVec one = hn::Set(Floats(), 1.0f);
  for_vectors(n, [&](std::int64_t i, auto lanes) {
    const auto [z, e] = logistic(lanes.load(x + i));
    const FloatVec rest = hn::Div(one, hn::Add(one, e));  // 1 - sigmoid
    const FloatVec inner = hn::MulAdd(z, rest, one);
    lanes.store(hn::Mul(hn::Mul(lanes.load(dy + i), hn::Mul(e, rest)), inner), dx + i);
  });
}

}  // namespace

void activation_float(const float* x, float* y, std::int64_t n) { forward(x, y, n); }
void activation_bf16(const bf16* x, bf16* y, std::int64_t n) { forward(x, y, n); }
void activation_backward_float(const float* x, const float* dy, float* dx, std::int64_t n) {
  backward(x, dy, dx, n);
}
void activation_backward_bf16(const bf16* x, const bf16* dy, bf16* dx, std::int64_t n) {
  backward(x, dy, dx, n);
}

}  // namespace longstride::ops::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace longstride::ops {

HWY_EXPORT(activation_float);
HWY_EXPORT(activation_bf16);
HWY_EXPORT(activation_backward_float);
HWY_EXPORT(activation_backward_bf16);

namespace cpu {

namespace {

constexpr std::int64_t kGrain = 16384;  // elements a task: some 10 us

template <class A, class Kernel>
void run(const Activation<A>& op, Kernel kernel) {
  parallel_ranges(op.x.size, kGrain, [&](std::int64_t begin, std::int64_t end) {
    kernel(op.x.data + begin, op.y.data + begin, end - begin);
  });
}

template <class A, class Kernel>
void run(const ActivationBackward<A>& op, Kernel kernel) {
  parallel_ranges(op.x.size, kGrain, [&](std::int64_t begin, std::int64_t end) {
    kernel(op.x.data + begin, op.dy.data + begin, op.dx.data + begin, end - begin);
  });
}

}  // namespace

void activation(const Activation<float>& op) { run(op, HWY_DYNAMIC_DISPATCH(activation_float)); }
void activation(const Activation<bf16>& op) { run(op, HWY_DYNAMIC_DISPATCH(activation_bf16)); }
void activation_backward(const ActivationBackward<float>& op) {
  run(op, HWY_DYNAMIC_DISPATCH(activation_backward_float));
}
void activation_backward(const ActivationBackward<bf16>& op) {
  run(op, HWY_DYNAMIC_DISPATCH(activation_backward_bf16));
}

}  // namespace cpu
}  // namespace longstride::ops
#endif  // HWY_ONCE
