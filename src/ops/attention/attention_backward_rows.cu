// D[i] = <dO[i], O[i]>        bytes  dout, out once        bound  memory
#include "ops/attention/attention_backward_rows.cuh"

#include <algorithm>

#include "base/integers.h"
#include "device/number.cuh"

namespace longstride::ops::cuda {

namespace {

using device::from_float;
using device::to_float;

constexpr int kThreads = 256;
constexpr int kLanes = 8;  // of a row

template <class A>
constexpr int kPiece = 16 / sizeof(A);

// Row n = (b N + i) H + h.
template <class A>
__global__ void __launch_bounds__(kThreads)
    describe_rows_kernel(Heads<const A> out, Heads<const A> dout, const float* lse, float factor,
                         bool whole_pieces, float2* rows, std::int32_t* counters,
                         std::int64_t count) {
  const std::int64_t thread = std::int64_t{blockIdx.x} * kThreads + threadIdx.x;
  for (std::int64_t n = thread; n < count; n += std::int64_t{gridDim.x} * kThreads) counters[n] = 0;

  const std::int64_t n = thread / kLanes, H = out.heads;
  const bool inside = n < out.batch * out.length * H;
  float sum = 0;
  const std::int64_t position = n / H, h = n - position * H;
  if (inside) {
    const A* const x = out.data + position * out.row_stride + h * out.width;
    const A* const y = dout.data + position * dout.row_stride + h * dout.width;
    const auto lane = static_cast<std::int64_t>(threadIdx.x % kLanes);
    for (std::int64_t c = lane * kPiece<A>; c < out.width; c += kLanes * kPiece<A>) {
      if (whole_pieces) {
        const auto a = device::load<kPiece<A>>(x + c), b = device::load<kPiece<A>>(y + c);
#pragma unroll
        for (int e = 0; e < kPiece<A>; ++e) sum += to_float(a.at[e]) * to_float(b.at[e]);
      } else {
        for (std::int64_t e = c; e < min(out.width, c + kPiece<A>); ++e)
          sum += to_float(x[e]) * to_float(y[e]);
      }
    }
  }
#pragma unroll
  for (int distance = kLanes / 2; distance > 0; distance /= 2)
    sum += __shfl_xor_sync(0xffffffffu, sum, distance);
  if (!inside || threadIdx.x % kLanes != 0) return;
  const std::int64_t b = position / out.length, i = position - b * out.length;
  const std::int64_t row = (b * H + h) * out.length + i;
  const float L = lse[row];
  rows[row] = isinf(L) && L < 0 ? float2{0, 0} : float2{factor * L, sum};
}

struct SomeHeads {
  std::int32_t count = 0, head[kHeadsAtOnce];
};

// One block a position and batch entry.
template <class A>
__global__ void __launch_bounds__(kThreads)
    clear_heads_kernel(Heads<A> dq, Heads<A> dk, Heads<A> dv, SomeHeads heads) {
  const auto clear = [&](const Heads<A>& x) {
    A* const row = x.data + std::int64_t{blockIdx.x} * x.row_stride;
    const auto width = static_cast<std::int32_t>(x.width);
    for (std::int32_t n = static_cast<std::int32_t>(threadIdx.x); n < heads.count * width;
         n += kThreads)
      row[heads.head[n / width] * width + n % width] = from_float<A>(0);
  };
  clear(dq);
  clear(dk);
  clear(dv);
}

// One block a key tile.
template <class A>
__global__ void __launch_bounds__(kThreads)
    add_splits_kernel(const __grid_constant__ BackwardArguments<A> a, int qk, int v) {
  const std::int32_t splits = a.walk.geometry.splits, heads = a.walk.heads;
  const std::uint32_t rest = blockIdx.x / static_cast<std::uint32_t>(heads);
  const std::uint32_t first = (rest * splits) * heads + blockIdx.x - rest * heads;
  const KeyTile tile = key_tile(a.walk, first);
  if (tile.count < 1) return;
  const std::int64_t size = std::int64_t{a.walk.tile.keys} * (qk + v);
  const auto write = [&](const Heads<A>& x, int start, int width) {
    A* const to = x.data + tile.batch * x.length * x.row_stride + tile.head * x.width;
    for (int n = static_cast<int>(threadIdx.x); n < tile.count * width; n += kThreads) {
      const int row = n / width, column = n - row * width;
      if (column >= x.width) continue;
      const float* from = a.keys + first * size + start + n;
      float sum = 0;
      for (std::int32_t s = 0; s < splits; ++s, from += size * heads) sum += *from;
      A& y = to[position_of_key(a.walk, tile, row) * x.row_stride + column];
      y = from_float<A>(a.stores != 0 ? sum : sum + to_float(y));
    }
  };
  write(a.dk, 0, qk);
  write(a.dv, a.walk.tile.keys * qk, v);
}

}  // namespace

template <class A>
void describe_rows(device::Stream stream, const AttentionBackward<A>& op, float factor,
                   bool whole_pieces, float2* rows, std::int32_t* counters, std::int64_t count) {
  const std::int64_t lanes = op.out.batch * op.out.length * op.out.heads * kLanes;
  describe_rows_kernel<A>
      <<<static_cast<unsigned>(ceil_div(lanes, kThreads)), kThreads, 0, stream>>>(
          op.out, op.dout, op.lse.data, factor, whole_pieces, rows, counters, count);
  device::launched(stream, "attention_backward rows B ", op.out.batch, " N ", op.out.length, " H ",
                   op.out.heads, " width ", op.out.width);
}

template <class A>
void clear_heads(device::Stream stream, const AttentionBackward<A>& op,
                 const std::vector<std::int32_t>& heads) {
  for (std::size_t begin = 0; begin < heads.size(); begin += kHeadsAtOnce) {
    SomeHeads some;
    for (std::size_t n = begin; n < std::min(heads.size(), begin + kHeadsAtOnce); ++n)
      some.head[some.count++] = heads[n];
    clear_heads_kernel<A><<<static_cast<unsigned>(op.q.batch * op.q.length), kThreads, 0, stream>>>(
        op.dq, op.dk, op.dv, some);
    device::launched(stream, "attention_backward zeros B ", op.q.batch, " N ", op.q.length,
                     " heads ", some.count);
  }
}

template <class A>
void add_splits(device::Stream stream, const BackwardArguments<A>& arguments, std::int64_t blocks,
                int qk, int v) {
  const std::int64_t tiles = blocks / arguments.walk.geometry.splits;
  add_splits_kernel<A><<<static_cast<unsigned>(tiles), kThreads, 0, stream>>>(arguments, qk, v);
  device::launched(stream, "attention_backward sums of ", arguments.walk.geometry.splits,
                   " splits, ", tiles, " key tiles");
}

template void describe_rows(device::Stream, const AttentionBackward<float>&, float, bool, float2*,
                            std::int32_t*, std::int64_t);
template void describe_rows(device::Stream, const AttentionBackward<bf16>&, float, bool, float2*,
                            std::int32_t*, std::int64_t);
template void describe_rows(device::Stream, const AttentionBackward<fp16>&, float, bool, float2*,
                            std::int32_t*, std::int64_t);
template void clear_heads(device::Stream, const AttentionBackward<float>&,
                          const std::vector<std::int32_t>&);
template void clear_heads(device::Stream, const AttentionBackward<bf16>&,
                          const std::vector<std::int32_t>&);
template void clear_heads(device::Stream, const AttentionBackward<fp16>&,
                          const std::vector<std::int32_t>&);
template void add_splits(device::Stream, const BackwardArguments<float>&, std::int64_t, int, int);
template void add_splits(device::Stream, const BackwardArguments<bf16>&, std::int64_t, int, int);
template void add_splits(device::Stream, const BackwardArguments<fp16>&, std::int64_t, int, int);

}  // namespace longstride::ops::cuda
