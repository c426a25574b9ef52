// Sums over rows and over the parts of split products.
//
//   sum_rows    parts[c, n] = sum_{r in chunk c} m[r, n]     least bytes: R N sizeof(A)
//   sum_parts   out[i] (+)= sum_p parts[p, i]                least bytes: 4 size (count + 1 or 2)
//
// Both are bound by memory. A thread holds `kWide` neighbouring columns, 8 threads stand below each
// other and take every eighth row, so that the order of the sum is fixed by the shape alone.
#include <algorithm>

#include "device/number.cuh"
#include "ops/linear/linear_sums_cuda.h"
#include "tensor/bf16.h"
#include "tensor/fp16.h"

namespace longstride::ops::cuda {

namespace {

constexpr int kAcross = 32, kBelow = 8;
constexpr std::int64_t kLeastRows = 256;  // of a chunk: 32 a thread
constexpr std::int64_t kMostChunks = 256;

// Adds the kBelow sums of each column; threads of the first row return the total.
template <int kWide>
__device__ void add_below(float (&sum)[kWide]) {
  __shared__ float sums[kBelow][kWide][kAcross];
  for (int w = 0; w < kWide; ++w) sums[threadIdx.y][w][threadIdx.x] = sum[w];
  __syncthreads();
  if (threadIdx.y != 0) return;
  for (int w = 0; w < kWide; ++w)
    for (int y = 1; y < kBelow; ++y) sum[w] += sums[y][w][threadIdx.x];
}

// Grid: (columns / (kAcross kWide), chunks).
template <class A, int kWide>
__global__ void __launch_bounds__(kAcross* kBelow)
    sum_rows_kernel(const A* m, std::int64_t rows, std::int64_t cols, std::int64_t stride,
                    std::int64_t chunk, float* parts) {
  const std::int64_t n = (static_cast<std::int64_t>(blockIdx.x) * kAcross + threadIdx.x) * kWide;
  const std::int64_t begin = blockIdx.y * chunk;
  const std::int64_t end = begin + chunk < rows ? begin + chunk : rows;
  float sum[kWide] = {};
  if (n < cols) {
#pragma unroll 8
    for (std::int64_t r = begin + threadIdx.y; r < end; r += kBelow) {
      const auto values = device::load<kWide>(m + r * stride + n);
      for (int w = 0; w < kWide; ++w) sum[w] += device::to_float(values.at[w]);
    }
  }
  add_below(sum);
  if (threadIdx.y != 0 || n >= cols) return;
  for (int w = 0; w < kWide; ++w) parts[blockIdx.y * cols + n + w] = sum[w];
}

template <int kWide>
__global__ void __launch_bounds__(kAcross* kBelow)
    sum_parts_kernel(const float* parts, std::int64_t count, std::int64_t size, float* out,
                     bool add) {
  const std::int64_t i = (static_cast<std::int64_t>(blockIdx.x) * kAcross + threadIdx.x) * kWide;
  float sum[kWide] = {};
  if (i < size) {
#pragma unroll 4
    for (std::int64_t p = threadIdx.y; p < count; p += kBelow) {
      const auto values = device::load<kWide>(parts + p * size + i);
      for (int w = 0; w < kWide; ++w) sum[w] += values.at[w];
    }
  }
  add_below(sum);
  if (threadIdx.y != 0 || i >= size) return;
  device::Pack<float, kWide> total;
  if (add) total = device::load<kWide>(out + i);
  for (int w = 0; w < kWide; ++w) total.at[w] = add ? total.at[w] + sum[w] : sum[w];
  device::store(out + i, total);
}

template <class A>
__global__ void convert_kernel(const float* from, std::int64_t size, A* to) {
  const std::int64_t i = static_cast<std::int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (i < size) to[i] = device::from_float<A>(from[i]);
}

unsigned blocks(std::int64_t work, std::int64_t each) {
  return static_cast<unsigned>((work + each - 1) / each);
}

template <class T>
bool aligned(const T* p, std::int64_t stride, int wide) {
  const auto bytes = static_cast<std::uintptr_t>(wide) * sizeof(T);
  return reinterpret_cast<std::uintptr_t>(p) % bytes == 0 && stride % wide == 0;
}

}  // namespace

void sum_parts(device::Stream stream, const float* parts, std::int64_t count, std::int64_t size,
               float* out, bool add) {
  if (size == 0) return;
  const dim3 threads(kAcross, kBelow);
  if (aligned(out, 4, 4) && aligned(parts, size, 4))
    sum_parts_kernel<4>
        <<<blocks(size, 4 * kAcross), threads, 0, stream>>>(parts, count, size, out, add);
  else
    sum_parts_kernel<1>
        <<<blocks(size, kAcross), threads, 0, stream>>>(parts, count, size, out, add);
  device::launched(stream, "sum of ", count, " parts of ", size);
}

template <class A>
std::int64_t sum_rows(device::Stream stream, Matrix<const A> m, float* parts, std::int64_t room) {
  if (m.rows == 0 || m.cols == 0) return 0;
  constexpr int kWide = 16 / sizeof(A);
  const std::int64_t most = std::clamp(room / m.cols, std::int64_t{1}, kMostChunks);
  const std::int64_t chunk = std::max(kLeastRows, (m.rows + most - 1) / most);
  const unsigned chunks = blocks(m.rows, chunk);
  const dim3 threads(kAcross, kBelow);
  if (aligned(m.data, m.stride, kWide) && m.cols % kWide == 0)
    sum_rows_kernel<A, kWide>
        <<<dim3(blocks(m.cols, kAcross * kWide), chunks), threads, 0, stream>>>(
            m.data, m.rows, m.cols, m.stride, chunk, parts);
  else
    sum_rows_kernel<A, 1><<<dim3(blocks(m.cols, kAcross), chunks), threads, 0, stream>>>(
        m.data, m.rows, m.cols, m.stride, chunk, parts);
  device::launched(stream, "sum of ", m.rows, " rows of ", m.cols);
  return chunks;
}

template <class A>
void convert(device::Stream stream, Vector<const float> from, A* to) {
  if (from.size == 0) return;
  convert_kernel<<<blocks(from.size, 256), 256, 0, stream>>>(from.data, from.size, to);
  device::launched(stream, "conversion of ", from.size, " floats");
}

template std::int64_t sum_rows(device::Stream, Matrix<const float>, float*, std::int64_t);
template std::int64_t sum_rows(device::Stream, Matrix<const bf16>, float*, std::int64_t);
template std::int64_t sum_rows(device::Stream, Matrix<const fp16>, float*, std::int64_t);
template void convert(device::Stream, Vector<const float>, float*);
template void convert(device::Stream, Vector<const float>, bf16*);
template void convert(device::Stream, Vector<const float>, fp16*);

}  // namespace longstride::ops::cuda
