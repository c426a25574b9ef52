// The activation, a vector at a time.
// Bound: about 30 instructions an exponential; memory (8 bytes an element) on several threads.
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

// sigmoid(1.702 x) = 1 / (1 + e) for x >= 0, e / (1 + e) else, e = exp(-|1.702 x|): nothing
// overflows, and far to the left the result is small with full relative precision.
HWY_INLINE FloatVec sigmoid_1702(FloatVec x) {
  const Floats d;
  const FloatVec one = hn::Set(d, 1.0f), z = hn::Mul(hn::Set(d, 1.702f), x);
  const FloatVec e = exp_negative(hn::Neg(hn::Abs(z)));
  const FloatVec top = hn::IfThenElse(hn::Ge(z, hn::Zero(d)), one, e);
  return hn::Div(top, hn::Add(one, e));
}

}  // namespace

void activation_range(const float* x, float* y, std::int64_t n) {
  for_vectors(n, [&](std::int64_t i, auto lanes) {
    const FloatVec v = lanes.load(x + i);
    lanes.store(hn::Mul(v, sigmoid_1702(v)), y + i);
  });
}

void activation_backward_range(const float* x, const float* dy, float* dx, std::int64_t n) {
  const Floats d;
  const FloatVec one = hn::Set(d, 1.0f), slope = hn::Set(d, 1.702f);
  for_vectors(n, [&](std::int64_t i, auto lanes) {
    const FloatVec v = lanes.load(x + i), s = sigmoid_1702(v);
    const FloatVec inner = hn::MulAdd(hn::Mul(slope, v), hn::Sub(one, s), one);
    lanes.store(hn::Mul(hn::Mul(lanes.load(dy + i), s), inner), dx + i);
  });
}

}  // namespace longstride::ops::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace longstride::ops {

HWY_EXPORT(activation_range);
HWY_EXPORT(activation_backward_range);

namespace cpu {

namespace {
constexpr std::int64_t kGrain = 16384;  // elements a task: some 10 us
}

void activation(const Activation<float>& op) {
  parallel_ranges(op.x.size, kGrain, [&](std::int64_t begin, std::int64_t end) {
    HWY_DYNAMIC_DISPATCH(activation_range)(op.x.data + begin, op.y.data + begin, end - begin);
  });
}

void activation_backward(const ActivationBackward<float>& op) {
  parallel_ranges(op.x.size, kGrain, [&](std::int64_t begin, std::int64_t end) {
    HWY_DYNAMIC_DISPATCH(activation_backward_range)
    (op.x.data + begin, op.dy.data + begin, op.dx.data + begin, end - begin);
  });
}

}  // namespace cpu
}  // namespace longstride::ops
#endif  // HWY_ONCE
