// The end of a residual branch and the norm behind it. A row lies in the registers of 8 to 256
// threads, four neighbours of a row a time: it is read once, its statistics are sums over what is
// in registers (the mean first, then the squares of the distances from it).
//
// Bytes an element: forward 8 + 2 sizeof(A), backward 8 + 3 sizeof(A) (0.10 and 0.12 ms for
// 49152 x 512 in bf16 at 3 TB/s). Work: 15 instructions an element, and with dropout 10 more (a
// draw of Philox, 40 instructions, serves four elements): a fifth of that time.
// Bound: memory. One pack a thread up to 1024 columns: few registers, so that a multiprocessor
// holds all the threads it can and a draw of some hides behind loads of others; a warp a row with
// four packs a thread was 6 % slower backward with dropout.
#include <cstdint>

#include "base/integers.h"
#include "device/number.cuh"
#include "ops/packs.cuh"
#include "ops/residual/residual_ref.h"
#include "ops/residual_norm/dropout.cuh"
#include "ops/residual_norm/residual_norm_cuda.h"
#include "ops/shape.h"

namespace longstride::ops::cuda {

namespace {

using device::load, device::Pack, device::store;

constexpr int kThreads = 256;
constexpr std::int64_t kMostColumns = 4096;

template <class T>
struct Rows {
  T* data;
  std::int64_t stride;
};

template <class A>
struct Forward {
  std::int64_t rows;
  int cols;
  Rows<float> h;
  Rows<const A> branch;  // or no data
  Rows<A> xhat;          // or no data
  float* rstd;           // or null
  float eps;
  Draws draws;
};

template <class A>
struct Backward {
  std::int64_t rows;
  int cols;
  Rows<const A> dxhat, xhat;
  const float* rstd;
  Rows<float> dh;
  bool add;
  Rows<A> dbranch;  // or no data
  Draws draws;
};

// The sum of x over the kLanes threads of a row, the same in all of them; in a fixed order.
template <int kLanes>
__device__ float row_sum(float x) {
#pragma unroll
  for (int distance = (kLanes < 32 ? kLanes : 32) / 2; distance > 0; distance /= 2)
    x += __shfl_xor_sync(0xffffffffu, x, distance);
  if constexpr (kLanes > 32) {
    __shared__ float sums[kThreads / 32];
    __syncthreads();  // the last sum was read
    if (threadIdx.x % 32 == 0) sums[threadIdx.x / 32] = x;
    __syncthreads();
    x = 0;
#pragma unroll
    for (int warp = 0; warp < kLanes / 32; ++warp)
      x += sums[threadIdx.x / kLanes * (kLanes / 32) + warp];
  }
  return x;
}

// Where this thread stands: `row`, and its packs of N columns.
template <int N, int kLanes>
struct Place {
  std::int64_t row = std::int64_t{blockIdx.x} * (kThreads / kLanes) + threadIdx.x / kLanes;
  int lane = threadIdx.x % kLanes;
  __device__ int column(int item) const { return (item * kLanes + lane) * N; }
};

template <class A, int N, int kLanes, int kItems>
__global__ void __launch_bounds__(kThreads) residual_norm_kernel(Forward<A> op) {
  const Place<N, kLanes> at;
  const int cols = at.row < op.rows ? op.cols : 0;  // no columns behind the last row
  Pack<float, N> h[kItems] = {};
#pragma unroll
  for (int k = 0; k < kItems; ++k)
    if (at.column(k) < cols) h[k] = load<N>(op.h.data + at.row * op.h.stride + at.column(k));
  if (op.branch.data != nullptr) {
    Pack<A, N> branch[kItems] = {};
#pragma unroll
    for (int k = 0; k < kItems; ++k)
      if (at.column(k) < cols)
        branch[k] = load<N>(op.branch.data + at.row * op.branch.stride + at.column(k));
    const DrawKey key(op.draws);
#pragma unroll
    for (int k = 0; k < kItems; ++k) {
      if (at.column(k) >= cols) continue;
      float x[N];
      unpack(branch[k], x);
      if (op.draws.threshold != 0)
        drop(op.draws, key, op.draws.first + at.row * op.cols + at.column(k), x);
#pragma unroll
      for (int i = 0; i < N; ++i) h[k].at[i] = __fadd_rn(h[k].at[i], x[i]);
      store(op.h.data + at.row * op.h.stride + at.column(k), h[k]);
    }
  }
  if (op.xhat.data == nullptr) return;

  float sum = 0, squares = 0;
#pragma unroll
  for (int k = 0; k < kItems; ++k)
#pragma unroll
    for (int i = 0; i < N; ++i) sum += h[k].at[i];  // 0 where there is no column
  const float mean = row_sum<kLanes>(sum) / static_cast<float>(op.cols);
#pragma unroll
  for (int k = 0; k < kItems; ++k) {
    if (at.column(k) >= cols) continue;
#pragma unroll
    for (int i = 0; i < N; ++i) {
      h[k].at[i] -= mean;
      squares = fmaf(h[k].at[i], h[k].at[i], squares);
    }
  }
  const float variance = row_sum<kLanes>(squares) / static_cast<float>(op.cols);
  const float rstd = 1 / sqrtf(variance + op.eps);
#pragma unroll
  for (int k = 0; k < kItems; ++k) {
    if (at.column(k) >= cols) continue;
    float xhat[N];
#pragma unroll
    for (int i = 0; i < N; ++i) xhat[i] = h[k].at[i] * rstd;
    store(op.xhat.data + at.row * op.xhat.stride + at.column(k), packed<A>(xhat));
  }
  if (op.rstd != nullptr && at.lane == 0 && at.row < op.rows) op.rstd[at.row] = rstd;
}

template <class A, int N, int kLanes, int kItems>
__global__ void __launch_bounds__(kThreads) residual_norm_backward_kernel(Backward<A> op) {
  const Place<N, kLanes> at;
  const int cols = at.row < op.rows ? op.cols : 0;
  Pack<A, N> dxhat[kItems] = {}, xhat[kItems] = {};
  Pack<float, N> dh[kItems] = {};
#pragma unroll
  for (int k = 0; k < kItems; ++k)
    if (at.column(k) < cols) {
      dxhat[k] = load<N>(op.dxhat.data + at.row * op.dxhat.stride + at.column(k));
      xhat[k] = load<N>(op.xhat.data + at.row * op.xhat.stride + at.column(k));
      if (op.add) dh[k] = load<N>(op.dh.data + at.row * op.dh.stride + at.column(k));
    }
  const float rstd = at.row < op.rows ? op.rstd[at.row] : 0;
  float sum = 0, product = 0;
#pragma unroll
  for (int k = 0; k < kItems; ++k) {
    float d[N], x[N];
    unpack(dxhat[k], d);
    unpack(xhat[k], x);
#pragma unroll
    for (int i = 0; i < N; ++i) {
      sum += d[i];
      product = fmaf(d[i], x[i], product);
    }
  }
  const float mean = row_sum<kLanes>(sum) / static_cast<float>(op.cols);
  const float along = row_sum<kLanes>(product) / static_cast<float>(op.cols);
  const DrawKey key(op.draws);
#pragma unroll
  for (int k = 0; k < kItems; ++k) {
    if (at.column(k) >= cols) continue;
    float d[N], x[N];
    unpack(dxhat[k], d);
    unpack(xhat[k], x);
#pragma unroll
    for (int i = 0; i < N; ++i) dh[k].at[i] = fmaf(rstd, d[i] - mean - x[i] * along, dh[k].at[i]);
    store(op.dh.data + at.row * op.dh.stride + at.column(k), dh[k]);
    if (op.dbranch.data == nullptr) continue;
#pragma unroll
    for (int i = 0; i < N; ++i) x[i] = dh[k].at[i];
    if (op.draws.threshold != 0)
      drop(op.draws, key, op.draws.first + at.row * op.cols + at.column(k), x);
    store(op.dbranch.data + at.row * op.dbranch.stride + at.column(k), packed<A>(x));
  }
}

// Calls run<N, kLanes, kItems>() for the narrowest layout that holds a row.
template <class Run>
void for_layout(bool packs, std::int64_t cols, const Run& run) {
  if (!packs) return run.template operator()<1, 256, 16>();
  if (cols <= 32) return run.template operator()<4, 8, 1>();
  if (cols <= 64) return run.template operator()<4, 16, 1>();
  if (cols <= 128) return run.template operator()<4, 32, 1>();
  if (cols <= 256) return run.template operator()<4, 64, 1>();
  if (cols <= 512) return run.template operator()<4, 128, 1>();
  if (cols <= 1024) return run.template operator()<4, 256, 1>();
  if (cols <= 2048) return run.template operator()<4, 256, 2>();
  run.template operator()<4, 256, 4>();
}

template <class T>
Rows<T> rows_of(Matrix<T> m) {
  return {m.data, m.stride};
}

// Whether rows of m are whole packs of four, or there are none.
template <class T>
bool packs(Matrix<T> m) {
  return m.empty() || (m.cols % 4 == 0 && m.stride % 4 == 0 &&
                       reinterpret_cast<std::uintptr_t>(m.data) % (4 * sizeof(T)) == 0);
}

void check_cols(const char* who, std::int64_t cols) {
  if (cols < 1 || cols > kMostColumns)
    throw invalid_argument(who, ": rows of ", cols, ", want 1 to ", kMostColumns);
}

unsigned blocks(std::int64_t rows, int lanes) {
  return static_cast<unsigned>(ceil_div(rows, kThreads / lanes));
}

}  // namespace

Draws draws_of(const char* who, const Dropout& dropout, const std::int64_t* device_step,
               std::int64_t cols) {
  if (!(dropout.p >= 0 && dropout.p < 1))
    throw invalid_argument(who, ": dropout probability is ", dropout.p, ", want 0 <= p < 1");
  if (dropout.first_row < 0)
    throw invalid_argument(who, ": first_row is ", dropout.first_row, ", want 0 or more");
  return {.threshold = ref::dropout_threshold(dropout.p),
          .scale = static_cast<float>(1 / (1 - dropout.p)),
          .key0 = static_cast<std::uint32_t>(dropout.seed),
          .key1 = static_cast<std::uint32_t>(dropout.seed >> 32),
          .lane = dropout.lane,
          .step = dropout.step,
          .device_step = device_step,
          .first = dropout.first_row * cols};
}

template <class A>
void residual_norm(device::Stream stream, const ResidualNorm<A>& op) {
  constexpr auto kWho = "residual_norm";
  const std::int64_t R = op.h.rows, C = op.h.cols;
  check_cols(kWho, C);
  want_shape(kWho, "h", op.h, R, C);
  if (!op.branch.empty()) want_shape(kWho, "branch", op.branch, R, C);
  if (!op.xhat.empty()) want_shape(kWho, "xhat", op.xhat, R, C);
  if (!op.rstd.empty()) want_size(kWho, "rstd", op.rstd, R);
  if (op.branch.empty() && op.xhat.empty())
    throw invalid_argument(kWho, ": neither branch nor xhat, want one of them");
  if (R == 0) return;
  const Forward<A> args{R,
                        static_cast<int>(C),
                        rows_of(op.h),
                        rows_of(op.branch),
                        rows_of(op.xhat),
                        op.rstd.data,
                        op.eps,
                        draws_of(kWho, op.dropout, op.device_step, C)};
  for_layout(packs(op.h) && packs(op.branch) && packs(op.xhat), C,
             [&]<int N, int kLanes, int kItems>() {
               residual_norm_kernel<A, N, kLanes, kItems>
                   <<<blocks(R, kLanes), kThreads, 0, stream>>>(args);
             });
  device::launched(stream, kWho, " ", R, "x", C);
}

template <class A>
void residual_norm_backward(device::Stream stream, const ResidualNormBackward<A>& op) {
  constexpr auto kWho = "residual_norm_backward";
  const std::int64_t R = op.dh.rows, C = op.dh.cols;
  check_cols(kWho, C);
  want_shape(kWho, "dxhat", op.dxhat, R, C);
  want_shape(kWho, "xhat", op.xhat, R, C);
  want_size(kWho, "rstd", op.rstd, R);
  want_shape(kWho, "dh", op.dh, R, C);
  if (!op.dbranch.empty()) want_shape(kWho, "dbranch", op.dbranch, R, C);
  if (R == 0) return;
  const Backward<A> args{R,
                         static_cast<int>(C),
                         rows_of(op.dxhat),
                         rows_of(op.xhat),
                         op.rstd.data,
                         rows_of(op.dh),
                         op.add,
                         rows_of(op.dbranch),
                         draws_of(kWho, op.dropout, op.device_step, C)};
  for_layout(packs(op.dxhat) && packs(op.xhat) && packs(op.dh) && packs(op.dbranch), C,
             [&]<int N, int kLanes, int kItems>() {
               residual_norm_backward_kernel<A, N, kLanes, kItems>
                   <<<blocks(R, kLanes), kThreads, 0, stream>>>(args);
             });
  device::launched(stream, kWho, " ", R, "x", C);
}

template void residual_norm(device::Stream, const ResidualNorm<float>&);
template void residual_norm(device::Stream, const ResidualNorm<bf16>&);
template void residual_norm(device::Stream, const ResidualNorm<fp16>&);
template void residual_norm_backward(device::Stream, const ResidualNormBackward<float>&);
template void residual_norm_backward(device::Stream, const ResidualNormBackward<bf16>&);
template void residual_norm_backward(device::Stream, const ResidualNormBackward<fp16>&);

}  // namespace longstride::ops::cuda
