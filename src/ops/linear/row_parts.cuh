// Mean and variance of a row whose columns lie in groups of four neighbouring threads: each thread
// has kFours times 4, a group c = 16 kFours. Every operation is rounded by itself and in one order,
// so that all kernels that include this get the same bits.
//
//   of c columns     m = sum x / c,    q = sum (x - m)^2
//   of n such parts  mean = sum m / n, variance = (sum q + c sum (m - mean)^2) / (c n)
#pragma once

namespace longstride::ops::cuda::row_end {

struct Part {
  float mean, squares;
};

// Over four neighbouring threads; the same in all of them.
__device__ inline float quad_sum(float x) {
  x = __fadd_rn(x, __shfl_xor_sync(0xffffffffu, x, 1));
  return __fadd_rn(x, __shfl_xor_sync(0xffffffffu, x, 2));
}

__device__ inline float sum4(const float (&x)[4]) {
  return __fadd_rn(__fadd_rn(x[0], x[1]), __fadd_rn(x[2], x[3]));
}

// x(m, i): number i of four m of this thread.
template <int kFours, class Value>
__device__ Part part_of(const Value& x) {
  float sums[4] = {}, squares[4] = {};
#pragma unroll
  for (int m = 0; m < kFours; ++m)
#pragma unroll
    for (int i = 0; i < 4; ++i) sums[i] = __fadd_rn(sums[i], x(m, i));
  const float mean = __fmul_rn(quad_sum(sum4(sums)), 1.0f / (16 * kFours));
#pragma unroll
  for (int m = 0; m < kFours; ++m)
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const float far = __fsub_rn(x(m, i), mean);
      squares[i] = __fmaf_rn(far, far, squares[i]);
    }
  return {mean, quad_sum(sum4(squares))};
}

struct Statistics {
  float mean, rstd;
};

template <int kFours, int kParts>
__device__ Statistics statistics_of(const Part (&parts)[kParts], float eps) {
  float mean = 0, squares = 0;
#pragma unroll
  for (int n = 0; n < kParts; ++n) mean = __fadd_rn(mean, parts[n].mean);
  mean = __fmul_rn(mean, 1.0f / kParts);
#pragma unroll
  for (int n = 0; n < kParts; ++n) {
    const float far = __fsub_rn(parts[n].mean, mean);
    squares = __fadd_rn(squares, __fmaf_rn(__fmul_rn(far, far), 16.0f * kFours, parts[n].squares));
  }
  const float variance = __fmul_rn(squares, 1.0f / (16 * kFours * kParts));
  return {mean, __frcp_rn(__fsqrt_rn(__fadd_rn(variance, eps)))};
}

__device__ inline float normalised(float x, const Statistics& row) {
  return __fmul_rn(__fsub_rn(x, row.mean), row.rstd);
}

// The first column, of 16, of a thread's four when its place among four neighbours is u; 8 times.
__device__ inline int first_column(int u) { return u % 2 * 8 + u / 2 * 4; }

}  // namespace longstride::ops::cuda::row_end
