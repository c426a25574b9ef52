// The norm of rows of 256 columns of the stream alone, with the bits that products which end in it
// give (row_end_sm90.cuh): a row in eight threads, each with the columns that a thread has there.
// Bytes an element 4 + sizeof(A); bound by memory.
#include "ops/linear/row_end_sm90.h"
#include "ops/linear/row_parts.cuh"
#include "ops/packs.cuh"

namespace longstride::ops::cuda::row_end {

namespace {

constexpr int kThreads = 256, kLanes = 8, kFours = 8;

template <class A>
__global__ void __launch_bounds__(kThreads) norm_kernel(const RowEnds<A> op) {
  const int column = threadIdx.x / 4 % 2 * kColumns + first_column(threadIdx.x % 4);
  const std::int64_t row = (std::int64_t{blockIdx.x} * kThreads + threadIdx.x) / kLanes;
  const bool has = row < op.rows;
  device::Pack<float, 4> h[kFours] = {};
#pragma unroll
  for (int m = 0; m < kFours; ++m)
    if (has) h[m] = device::load<4>(op.stream + row * op.stream_stride + column + 16 * m);
  const Part mine = part_of<kFours>([&](int m, int i) -> float { return h[m].at[i]; });
  Part parts[2];
#pragma unroll
  for (int of = 0; of < 2; ++of) {
    const int from = static_cast<int>(threadIdx.x) % 32 / kLanes * kLanes + 4 * of;
    parts[of] = {__shfl_sync(0xffffffffu, mine.mean, from),
                 __shfl_sync(0xffffffffu, mine.squares, from)};
  }
  const Statistics statistics = statistics_of<kFours>(parts, op.eps);
  if (!has) return;
#pragma unroll
  for (int m = 0; m < kFours; ++m) {
    float v[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) v[i] = normalised(h[m].at[i], statistics);
    device::store(op.xhat + row * op.xhat_stride + column + 16 * m, packed<A>(v));
  }
  if (op.rstd != nullptr && threadIdx.x % kLanes == 0) op.rstd[row] = statistics.rstd;
}

}  // namespace

template <class A>
void launch_norm(device::Stream stream, const RowEnds<A>& ends) {
  constexpr int kRowsOfBlock = kThreads / kLanes;
  const auto blocks = static_cast<unsigned>((ends.rows + kRowsOfBlock - 1) / kRowsOfBlock);
  norm_kernel<A><<<blocks, kThreads, 0, stream>>>(ends);
  device::launched(stream, "norm ", ends.rows, "x", 2 * kColumns);
}

template void launch_norm(device::Stream, const RowEnds<bf16>&);
template void launch_norm(device::Stream, const RowEnds<fp16>&);

}  // namespace longstride::ops::cuda::row_end
