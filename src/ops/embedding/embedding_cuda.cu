// Bytes and positions to vectors: some threads a row, up to a warp, that read the same places of
// the tables side by side, and kDepth rows a thread. Rows of the same position in all sequences
// come one behind the other, so that a row of a large table of positions is read from memory once.
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

constexpr int kThreads = 256, kPacks = 4, kMostAxes = 4;

struct Table {
  const float* data;
  std::int64_t stride;
  std::uint32_t extent;
};

struct Args {
  const std::uint8_t* tokens;
  std::uint32_t rows, batch, length;
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

// What row r of y is the sum of: rows of the tables, or the start symbol.
struct Place {
  std::int64_t r;
  bool start;
  std::uint32_t byte, axis[kMostAxes];
};

// `at` counts the rows position by position. The last axis is fastest.
__device__ Place place_of(const Args& op, std::uint32_t at) {
  const std::uint32_t position = at / op.batch;
  Place place;
  place.r = std::int64_t{at % op.batch} * op.length + position;
  place.start = position == 0;
  place.byte = place.start ? 0 : op.tokens[place.r - 1];
  std::uint32_t rest = place.start ? 0 : position - 1;
#pragma unroll
  for (int a = kMostAxes - 1; a >= 0; --a) {
    if (a >= op.axes) continue;
    place.axis[a] = rest % op.axis[a].extent;
    rest /= op.axis[a].extent;
  }
  return place;
}

template <int N>
__device__ Pack<float, N> row_of(const Table& table, std::uint32_t row, int c) {
  return load<N>(table.data + row * table.stride + c);
}

template <int N>
__global__ void __launch_bounds__(kThreads) embedding_kernel(Args op) {
  const std::uint32_t at = blockIdx.x * (kThreads / op.lanes) + threadIdx.x / op.lanes;
  if (at >= op.rows) return;
  const Place place = place_of(op, at);
  const int step = op.lanes * N;
  for (int first = threadIdx.x % op.lanes * N; first < op.cols; first += kPacks * step) {
    Pack<float, N> y[kPacks];
#pragma unroll
    for (int k = 0; k < kPacks; ++k) {
      const int c = first + k * step;
      if (c >= op.cols) continue;
      y[k] = place.start ? load<N>(op.start + c) : row_of<N>(op.bytes, place.byte, c);
#pragma unroll
      for (int a = kMostAxes - 1; a >= 0; --a)  // the last axis first, as in embedding.h
        if (a < op.axes && !place.start) add(y[k], row_of<N>(op.axis[a], place.axis[a], c));
    }
#pragma unroll
    for (int k = 0; k < kPacks; ++k)
      if (first + k * step < op.cols) store(op.y + place.r * op.stride + first + k * step, y[k]);
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
            .batch = static_cast<std::uint32_t>(op.batch),
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
  while (args.lanes > 8 && args.lanes / 2 * kPacks * (packs ? 4 : 1) >= d) args.lanes /= 2;
  const auto blocks = static_cast<unsigned>(ceil_div(rows, kThreads / args.lanes));
  if (packs)
    embedding_kernel<4><<<blocks, kThreads, 0, stream>>>(args);
  else
    embedding_kernel<1><<<blocks, kThreads, 0, stream>>>(args);
  device::launched(stream, kWho, " ", rows, "x", d);
}

}  // namespace longstride::ops::cuda
