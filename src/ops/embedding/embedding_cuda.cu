// Bytes and positions to vectors: some threads a row, up to a warp, that read the same places of
// the tables side by side.
// Bytes an element: 4 written, 4 (1 + axes) read, most of them from L2. Bound: memory (0.033 ms
// written for 49152 x 512 at 3 TB/s).
#include <algorithm>
#include <cstdint>

#include "base/integers.h"
#include "device/number.cuh"
#include "ops/embedding/embedding_check.h"
#include "ops/embedding/embedding_cuda.h"

namespace longstride::ops::cuda {

namespace {

using device::load, device::Pack, device::store;

constexpr int kThreads = 256, kMostAxes = 4;

struct Table {
  const float* data;
  std::int64_t stride;
  std::uint32_t extent;
};

struct Args {
  const std::uint8_t* tokens;
  std::uint32_t rows, length;
  int cols, lanes, axes;
  Table bytes = {}, axis[kMostAxes] = {};
  const float* start;
  float* y;
  std::int64_t stride;
};

template <int N>
__device__ void add(Pack<float, N>& sum, const Pack<float, N>& x) {
#pragma unroll
  for (int i = 0; i < N; ++i) sum.at[i] += x.at[i];
}

template <int N>
__global__ void __launch_bounds__(kThreads) embedding_kernel(Args op) {
  const std::int64_t r = std::int64_t{blockIdx.x} * (kThreads / op.lanes) + threadIdx.x / op.lanes;
  if (r >= op.rows) return;
  const std::uint32_t position = static_cast<std::uint32_t>(r) % op.length;
  const float* byte = op.start;
  const float* place[kMostAxes];
  if (position > 0) {
    byte = op.bytes.data + op.tokens[r - 1] * op.bytes.stride;
    std::uint32_t rest = position - 1;
#pragma unroll
    for (int a = kMostAxes - 1; a >= 0; --a) {
      if (a >= op.axes) continue;
      place[a] = op.axis[a].data + rest % op.axis[a].extent * op.axis[a].stride;
      rest /= op.axis[a].extent;
    }
  }
#pragma unroll 4
  for (int c = threadIdx.x % op.lanes * N; c < op.cols; c += op.lanes * N) {
    Pack<float, N> y = load<N>(byte + c);
#pragma unroll
    for (int a = kMostAxes - 1; a >= 0; --a)  // the last axis first, as in embedding.h
      if (a < op.axes && position > 0) add(y, load<N>(place[a] + c));
    store(op.y + r * op.stride + c, y);
  }
}

Table table(Matrix<const float> m) {
  return {m.data, m.stride, static_cast<std::uint32_t>(m.rows)};
}

}  // namespace

void embedding(device::Stream stream, const Embedding& op) {
  constexpr auto kWho = "embedding";
  const std::int64_t d = op.y.cols, rows = op.batch * op.length;
  check_tokens(kWho, op.tokens, op.batch, op.length);
  check_tables(kWho, op.bytes, op.axes, op.start, op.length - 1);
  want_shape(kWho, "y", op.y, rows, d);
  want_size(kWho, "start", op.start, d);
  if (rows == 0) return;
  Args args{.tokens = op.tokens,
            .rows = static_cast<std::uint32_t>(rows),
            .length = static_cast<std::uint32_t>(op.length),
            .cols = static_cast<int>(d),
            .lanes = 32,
            .axes = static_cast<int>(op.axes.size()),
            .bytes = table(op.bytes),
            .start = op.start.data,
            .y = op.y.data,
            .stride = op.y.stride};
  std::transform(op.axes.begin(), op.axes.end(), args.axis, table);
  const bool packs =
      packs_of_four(op.y) && packs_of_four(op.bytes) && packs_of_four(op.start) &&
      std::all_of(op.axes.begin(), op.axes.end(), [](auto axis) { return packs_of_four(axis); });
  while (args.lanes > 1 && args.lanes / 2 * (packs ? 4 : 1) >= d) args.lanes /= 2;
  const auto blocks = static_cast<unsigned>(ceil_div(rows, kThreads / args.lanes));
  if (packs)
    embedding_kernel<4><<<blocks, kThreads, 0, stream>>>(args);
  else
    embedding_kernel<1><<<blocks, kThreads, 0, stream>>>(args);
  device::launched(stream, kWho, " ", rows, "x", d);
}

}  // namespace longstride::ops::cuda
