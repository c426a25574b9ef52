// Bytes and positions to vectors: some threads a row, up to a warp, that read the same places of
// the tables side by side, and kDepth rows a thread. Rows of the same position in all sequences
// come one behind the other, so that a row of a large table of positions is read from memory once.
// Bytes an element: 4 written, 4 (1 + axes) read, most of them from L2. Bound: memory (0.033 ms
// written for 49152 x 512 at 3 TB/s).
#include <algorithm>
#include <cstdint>
#include <iterator>

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
  std::uint32_t rows, batch, length;
  int cols, lanes;
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

constexpr int packs_under_way(std::size_t axes) { return axes <= 2 ? 4 : 2; }

// y[r] = start, or the sum of one row of each table. All loads of a thread come before its sums,
// and none hangs on a condition: columns behind the last are read at the last.
template <int N, int kAxes>
__global__ void __launch_bounds__(kThreads) embedding_kernel(Args op) {
  constexpr int kPacks = packs_under_way(kAxes);
  const std::uint32_t at = blockIdx.x * (kThreads / op.lanes) + threadIdx.x / op.lanes;
  if (at >= op.rows) return;
  const std::uint32_t position = at / op.batch;
  const std::int64_t r = std::int64_t{at % op.batch} * op.length + position;
  float* const y = op.y + r * op.stride;
  const int begin = threadIdx.x % op.lanes * N, step = op.lanes * N;
  if (position == 0) {
    for (int c = begin; c < op.cols; c += step) store(y + c, load<N>(op.start + c));
    return;
  }
  const float* from[kAxes + 1];  // the last axis, which is the fastest, behind the bytes
  from[0] = op.bytes.data + op.tokens[r - 1] * op.bytes.stride;
  std::uint32_t rest = position - 1;
#pragma unroll
  for (int a = kAxes - 1; a >= 0; --a) {
    from[kAxes - a] = op.axis[a].data + rest % op.axis[a].extent * op.axis[a].stride;
    rest /= op.axis[a].extent;
  }
  for (int first = begin; first < op.cols; first += kPacks * step) {
    Pack<float, N> x[kAxes + 1][kPacks];
#pragma unroll
    for (int t = 0; t <= kAxes; ++t)
#pragma unroll
      for (int k = 0; k < kPacks; ++k)
        x[t][k] = load<N>(from[t] + min(first + k * step, op.cols - N));
#pragma unroll
    for (int k = 0; k < kPacks; ++k) {
#pragma unroll
      for (int t = 1; t <= kAxes; ++t) add(x[0][k], x[t][k]);
      if (first + k * step < op.cols) store(y + first + k * step, x[0][k]);
    }
  }
}

template <int N>
void launch(device::Stream stream, const Args& args, std::size_t axes) {
  constexpr void (*kKernels[])(Args) = {embedding_kernel<N, 0>, embedding_kernel<N, 1>,
                                        embedding_kernel<N, 2>, embedding_kernel<N, 3>,
                                        embedding_kernel<N, 4>};
  static_assert(std::size(kKernels) == kMostAxes + 1);
  const auto blocks = static_cast<unsigned>(ceil_div(args.rows, kThreads / args.lanes));
  kKernels[axes]<<<blocks, kThreads, 0, stream>>>(args);
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
            .batch = static_cast<std::uint32_t>(op.batch),
            .length = static_cast<std::uint32_t>(op.length),
            .cols = static_cast<int>(d),
            .lanes = 32,
            .bytes = table(op.bytes),
            .start = op.start.data,
            .y = op.y.data,
            .stride = op.y.stride};
  std::transform(op.axes.begin(), op.axes.end(), args.axis, table);
  const bool packs =
      packs_of_four(op.y) && packs_of_four(op.bytes) && packs_of_four(op.start) &&
      std::all_of(op.axes.begin(), op.axes.end(), [](auto axis) { return packs_of_four(axis); });
  const int under_way = packs_under_way(op.axes.size());
  while (args.lanes > 8 && args.lanes / 2 * under_way * (packs ? 4 : 1) >= d) args.lanes /= 2;
  if (packs)
    launch<4>(stream, args, op.axes.size());
  else
    launch<1>(stream, args, op.axes.size());
  device::launched(stream, kWho, " ", rows, "x", d);
}

}  // namespace longstride::ops::cuda
