// The activation on the GPU, an element at a time: y = x s, dpre = dy s (1 + 1.702 x (1 - s)),
// s = 1 / (1 + 2^(-1.702 log2(e) x)), in float.
// Work: 2 special functions and about 10 instructions an element: with exact division and one
// conversion at a time bf16 was bound by them. Bytes an element: 2 sizeof(A)
// forward, 4 sizeof(A) backward with y (0.13 and 0.27 ms for 49152 x 2048 in bf16 at 3 TB/s).
// Bound: memory; each thread has kDepth loads of 16 bytes (twice as many backward) under way.
#include <cstdint>
#include <utility>

#include "base/integers.h"
#include "device/number.cuh"
#include "ops/activation/activation_cuda.h"
#include "ops/packs.cuh"
#include "ops/shape.h"

namespace longstride::ops::cuda {

namespace {

using device::load, device::Pack, device::store;

constexpr int kThreads = 256, kDepth = 4;

// 1 / (1 + 2^(-1.702 log2(e) x)) to 2 units in the last place. Far to the left the power is
// infinite and s is 0; far to the right s is 1: no finite x makes a NaN.
__device__ float logistic(float x) {
  constexpr auto kExponent = static_cast<float>(-1.702 * 1.4426950408889634);
  float power;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(power) : "f"(kExponent * x));
  return __fdividef(1, 1 + power);
}

template <class A>
struct Rows {  // of one array; the matrix all arrays of a call have is in Shape
  A* data;
  std::int64_t stride;
};

struct Shape {
  std::int64_t rows, cols;
  int lanes;  // threads along a row, a power of 2; kThreads / lanes rows side by side
};

// Calls visit(offset, ...) for each pack of N elements of this thread's kDepth rows; whether there
// is one is the same question for all arrays, where it lies is not: row and column are given.
template <int N, class Visit>
__device__ void for_packs(const Shape& shape, const Visit& visit) {
  const int lane = threadIdx.x % shape.lanes, sides = kThreads / shape.lanes;
  const std::int64_t column = (std::int64_t{blockIdx.y} * shape.lanes + lane) * N;
  const std::int64_t first = std::int64_t{blockIdx.x} * sides * kDepth + threadIdx.x / shape.lanes;
  if (column >= shape.cols) return;
#pragma unroll
  for (int k = 0; k < kDepth; ++k) {
    const std::int64_t row = first + k * sides;
    if (row < shape.rows) visit(k, row, column);
  }
}

template <class A, int N>
__global__ void __launch_bounds__(kThreads)
    activation_kernel(Shape shape, Rows<const A> x, Rows<A> y) {
  Pack<A, N> in[kDepth];
  for_packs<N>(shape, [&](int k, std::int64_t row, std::int64_t column) {
    in[k] = load<N>(x.data + row * x.stride + column);
  });
  for_packs<N>(shape, [&](int k, std::int64_t row, std::int64_t column) {
    float value[N];
    unpack(in[k], value);
#pragma unroll
    for (int i = 0; i < N; ++i) value[i] *= logistic(value[i]);
    store(y.data + row * y.stride + column, packed<A>(value));
  });
}

template <class A, int N>
__global__ void __launch_bounds__(kThreads)
    activation_backward_kernel(Shape shape, Rows<const A> pre, Rows<const A> dy, Rows<A> dpre,
                               Rows<A> y) {
  Pack<A, N> in[kDepth], gradient[kDepth];
  for_packs<N>(shape, [&](int k, std::int64_t row, std::int64_t column) {
    in[k] = load<N>(pre.data + row * pre.stride + column);
    gradient[k] = load<N>(dy.data + row * dy.stride + column);
  });
  for_packs<N>(shape, [&](int k, std::int64_t row, std::int64_t column) {
    float value[N], slope[N];
    unpack(in[k], value);
    unpack(gradient[k], slope);
#pragma unroll
    for (int i = 0; i < N; ++i) {
      const float s = logistic(value[i]);
      slope[i] *= fmaf(1.702f * s * (1 - s), value[i], s);
      value[i] *= s;
    }
    store(dpre.data + row * dpre.stride + column, packed<A>(slope));
    if (y.data != nullptr) store(y.data + row * y.stride + column, packed<A>(value));
  });
}

template <class A>
Rows<A> rows_of(Matrix<A> m) {
  return {m.data, m.stride};
}

template <int N, class A>
bool packs(Matrix<A> m) {
  return m.cols % N == 0 && m.stride % N == 0 &&
         reinterpret_cast<std::uintptr_t>(m.data) % (N * sizeof(A)) == 0;
}

// Many short rows without gaps are a few long ones.
template <class... Ms>
void join_rows(Ms&... matrices) {
  constexpr std::int64_t kJoined = 2048;
  if (!((matrices.empty() || matrices.contiguous()) && ...)) return;
  const auto join = [](auto& m) {
    if (m.empty() || m.rows * m.cols % kJoined != 0) return;
    m = {m.data, m.rows * m.cols / kJoined, kJoined, kJoined};
  };
  (join(matrices), ...);
}

template <int N>
std::pair<Shape, dim3> plan(std::int64_t rows, std::int64_t cols) {
  Shape shape{rows, cols, kThreads};
  while (shape.lanes > 1 && shape.lanes / 2 * N >= cols) shape.lanes /= 2;
  const auto x = ceil_div(rows, std::int64_t{kThreads} / shape.lanes * kDepth);
  const auto y = ceil_div(cols, std::int64_t{shape.lanes} * N);
  if (y > 65535) throw invalid_argument("activation: rows of ", cols, ", want at most ", 16776960);
  return {shape, dim3(static_cast<unsigned>(x), static_cast<unsigned>(y))};
}

}  // namespace

template <class A>
void activation(device::Stream stream, std::type_identity_t<Matrix<const A>> x, Matrix<A> y) {
  want_shape("activation", "x", x, x.rows, x.cols);
  want_shape("activation", "y", y, x.rows, x.cols);
  if (x.rows == 0 || x.cols == 0) return;
  join_rows(x, y);
  constexpr int kWide = 16 / sizeof(A);
  const auto run = [&]<int N>() {
    const auto [shape, grid] = plan<N>(x.rows, x.cols);
    activation_kernel<A, N><<<grid, kThreads, 0, stream>>>(shape, rows_of(x), rows_of(y));
  };
  if (packs<kWide>(x) && packs<kWide>(y))
    run.template operator()<kWide>();
  else
    run.template operator()<1>();
  device::launched(stream, "activation ", x.rows, "x", x.cols);
}

template <class A>
void activation_backward(device::Stream stream, std::type_identity_t<Matrix<const A>> pre,
                         std::type_identity_t<Matrix<const A>> dy, Matrix<A> dpre,
                         std::type_identity_t<Matrix<A>> y) {
  want_shape("activation_backward", "pre", pre, pre.rows, pre.cols);
  want_shape("activation_backward", "dy", dy, pre.rows, pre.cols);
  want_shape("activation_backward", "dpre", dpre, pre.rows, pre.cols);
  if (!y.empty()) want_shape("activation_backward", "y", y, pre.rows, pre.cols);
  if (pre.rows == 0 || pre.cols == 0) return;
  join_rows(pre, dy, dpre, y);
  constexpr int kWide = 16 / sizeof(A);
  const auto run = [&]<int N>() {
    const auto [shape, grid] = plan<N>(pre.rows, pre.cols);
    activation_backward_kernel<A, N><<<grid, kThreads, 0, stream>>>(
        shape, rows_of(pre), rows_of(dy), rows_of(dpre), rows_of(y));
  };
  if (packs<kWide>(pre) && packs<kWide>(dy) && packs<kWide>(dpre) && (y.empty() || packs<kWide>(y)))
    run.template operator()<kWide>();
  else
    run.template operator()<1>();
  device::launched(stream, "activation_backward ", pre.rows, "x", pre.cols);
}

template void activation(device::Stream, Matrix<const float>, Matrix<float>);
template void activation(device::Stream, Matrix<const bf16>, Matrix<bf16>);
template void activation(device::Stream, Matrix<const fp16>, Matrix<fp16>);
template void activation_backward(device::Stream, Matrix<const float>, Matrix<const float>,
                                  Matrix<float>, Matrix<float>);
template void activation_backward(device::Stream, Matrix<const bf16>, Matrix<const bf16>,
                                  Matrix<bf16>, Matrix<bf16>);
template void activation_backward(device::Stream, Matrix<const fp16>, Matrix<const fp16>,
                                  Matrix<fp16>, Matrix<fp16>);

}  // namespace longstride::ops::cuda
