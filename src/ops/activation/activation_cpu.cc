// The activation, a vector at a time.
// Work: about 20 instructions a vector, one of them a division. Bytes an element: 8 forward, 12
// backward (4 and 6 in bf16). Bound: memory; in the caches, arithmetic.
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "ops/activation/activation_cpu.cc"
#include "hwy/foreach_target.h"
// After foreach_target.h, which includes this file once per instruction set.
#include <algorithm>
#include <cstdint>

#include "base/threads.h"
#include "ops/activation/activation.h"
#include "ops/simd.h"

HWY_BEFORE_NAMESPACE();
namespace longstride::ops::HWY_NAMESPACE {

namespace {

constexpr int kSide = 6;  // vectors side by side

// z = 1.702 x and e = exp(z), cut off where e drowns 1: sigmoid = e / (1 + e) there is 1, and
// 1 - sigmoid = 1 / (1 + e) times z is nothing beside 1. Far to the left both keep their digits.
template <int kVectors, class Lanes, class A>
HWY_INLINE void logistic(const A* x, Lanes lanes, FloatVec (&z)[kVectors],
                         FloatVec (&e)[kVectors]) {
  const Floats d;
#pragma GCC unroll 16
  for (int k = 0; k < kVectors; ++k)
    z[k] = at_most(d, 21.0f, hn::Mul(hn::Set(d, 1.702f), lanes.load(x + k * float_lanes())));
  exp(d, z, e);
}

template <class A>
HWY_INLINE void forward(const A* x, float* y, std::int64_t n) {
  const Floats d;
  const FloatVec one = hn::Set(d, 1.0f);
  const std::int64_t step = float_lanes();
  for_groups<kSide>(n, [&](std::int64_t i, auto lanes, auto vectors) {
    constexpr int kVectors = decltype(vectors)::value;
    FloatVec z[kVectors], e[kVectors];
    logistic(x + i, lanes, z, e);
#pragma GCC unroll 16
    for (int k = 0; k < kVectors; ++k) e[k] = hn::Div(e[k], hn::Add(one, e[k]));
#pragma GCC unroll 16
    for (int k = 0; k < kVectors; ++k) e[k] = hn::Mul(e[k], lanes.load(x + i + k * step));
#pragma GCC unroll 16
    for (int k = 0; k < kVectors; ++k) lanes.store(e[k], y + i + k * step);
  });
}

template <class A>
HWY_INLINE void backward(const A* x, const A* dy, float* dx, std::int64_t n) {
  const Floats d;
  const FloatVec one = hn::Set(d, 1.0f);
  const std::int64_t step = float_lanes();
  for_groups<kSide>(n, [&](std::int64_t i, auto lanes, auto vectors) {
    constexpr int kVectors = decltype(vectors)::value;
    FloatVec z[kVectors], e[kVectors];
    logistic(x + i, lanes, z, e);
    FloatVec rest[kVectors];
#pragma GCC unroll 16
    for (int k = 0; k < kVectors; ++k) {
      const FloatVec capped = at_most(d, 0x1.0p30f, e[k]);  // so that e / (1 + e) is exact there
      rest[k] = hn::Div(one, hn::Add(one, capped));         // 1 - sigmoid
      e[k] = hn::Mul(capped, lanes.load(dy + i + k * step));
    }
#pragma GCC unroll 16
    for (int k = 0; k < kVectors; ++k)
      e[k] = hn::Mul(hn::Mul(e[k], rest[k]), hn::MulAdd(z[k], rest[k], one));
#pragma GCC unroll 16
    for (int k = 0; k < kVectors; ++k) lanes.store(e[k], dx + i + k * step);
  });
}

// In bf16 the results are rounded in a loop of their own: the conversions would lengthen the chain
// of instructions that wait for each other, and fewer vectors would be under way.
constexpr std::int64_t kBlock = 1024;
template <class Compute>
HWY_INLINE void rounded(bf16* to, std::int64_t n, const Compute& compute) {
  HWY_ALIGN float block[kBlock];
  for (std::int64_t at = 0; at < n; at += kBlock) {
    const std::int64_t size = std::min(kBlock, n - at);
    compute(at, block, size);
    for_vectors(
        size, [&](std::int64_t i, auto lanes) { lanes.store(lanes.load(block + i), to + at + i); });
  }
}

}  // namespace

void activation_float(const float* x, float* y, std::int64_t n) { forward(x, y, n); }
void activation_bf16(const bf16* x, bf16* y, std::int64_t n) {
  rounded(y, n,
          [&](std::int64_t at, float* block, std::int64_t size) { forward(x + at, block, size); });
}
void activation_backward_float(const float* x, const float* dy, float* dx, std::int64_t n) {
  backward(x, dy, dx, n);
}
void activation_backward_bf16(const bf16* x, const bf16* dy, bf16* dx, std::int64_t n) {
  rounded(dx, n, [&](std::int64_t at, float* block, std::int64_t size) {
    backward(x + at, dy + at, block, size);
  });
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
