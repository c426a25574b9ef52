// D[i] = <dO[i], O[i]> and L log2(e) for the Hopper backward kernels, padded to whole tiles. Reads
// dO and O once: bound by memory, at widths of 64 by 16 bytes a thread and row.
#include "base/integers.h"
#include "device/number.cuh"
#include "ops/attention/attention_sm90_backward.h"

namespace longstride::ops::cuda::sm90 {

namespace {

constexpr int kLanes = 8;  // threads of one row of one head

template <class A>
__global__ void rows_kernel(Heads<const A> out, Heads<const A> dout, const float* lse,
                            RowNumbers rows) {
  const std::int64_t n =
      (std::int64_t{blockIdx.x} * blockDim.x + threadIdx.x) / kLanes;  // [B, padded, H]
  const int lane = static_cast<int>(threadIdx.x) % kLanes;
  const std::int64_t h = n % out.heads, i = n / out.heads % rows.padded;
  const std::int64_t b = n / out.heads / rows.padded;
  if (b >= out.batch) return;
  float sum = 0;
  if (i < out.length) {
    const std::int64_t row = b * out.length + i;
    const A* const o = out.data + row * out.row_stride + h * out.width;
    const A* const d = dout.data + row * dout.row_stride + h * dout.width;
    for (std::int64_t c = 8 * lane; c < out.width; c += 8 * kLanes) {
      const auto x = device::load<8>(o + c), y = device::load<8>(d + c);
#pragma unroll
      for (int e = 0; e < 8; ++e) sum += device::to_float(x.at[e]) * device::to_float(y.at[e]);
    }
  }
  const unsigned mine = 0xffu << (threadIdx.x % 32 / kLanes * kLanes);
#pragma unroll
  for (int bit = kLanes / 2; bit > 0; bit /= 2) sum += __shfl_xor_sync(mine, sum, bit);
  if (lane != 0) return;
  const std::int64_t at = (b * out.heads + h) * rows.padded + i;
  const float l = i < out.length ? lse[(b * out.heads + h) * out.length + i] : -INFINITY;
  rows.mean[at] = sum;
  rows.lse[at] = l == -INFINITY ? INFINITY : l * 1.4426950408889634f;
}

}  // namespace

template <class A>
void describe_rows(device::Stream stream, const AttentionBackward<A>& op, const RowNumbers& rows) {
  constexpr std::int64_t kThreads = 256;
  const std::int64_t threads = op.q.batch * op.q.heads * rows.padded * kLanes;
  rows_kernel<A>
      <<<static_cast<unsigned>(ceil_div(threads, kThreads)), static_cast<unsigned>(kThreads), 0,
         stream>>>(op.out, op.dout, op.lse.data, rows);
  device::launched(stream, "attention_backward rows (Hopper) ", op.q.batch, "x", op.q.length, "x",
                   op.q.heads, "x", op.v.width);
}

template void describe_rows(device::Stream, const AttentionBackward<bf16>&, const RowNumbers&);
template void describe_rows(device::Stream, const AttentionBackward<fp16>&, const RowNumbers&);

}  // namespace longstride::ops::cuda::sm90
