// The matrix products behind linear.h, by our own kernels (product_cpu.cc).
#pragma once

#include <cstdint>

#include "tensor/bf16.h"
#include "tensor/tensor.h"

namespace longstride::ops::cpu {

// Element (i, j) is data[i * stride + j], or data[j * stride + i] where transposed.
template <class A>
struct Operand {
  const A* data = nullptr;
  std::int64_t stride = 0;
  bool transposed = false;

  Operand from(std::int64_t i, std::int64_t j) const {
    return {data + (transposed ? j * stride + i : i * stride + j), stride, transposed};
  }
};

// What a product is added to: row r at data + r * stride (stride 0: a bias); nullptr: zeros.
struct Start {
  const float* data = nullptr;
  std::int64_t stride = 0;

  Start from(std::int64_t r, std::int64_t c) const {
    return {data ? data + r * stride + c : nullptr, stride};
  }
};

// c = start + a b with a [c.rows, K], b [K, c.cols].
template <class A, class C>
struct Product {
  Operand<A> a, b;
  std::int64_t K;
  Start start;
  Matrix<C> c;
};

// For many rows of c. A row of a float c has bits that depend on its own row of a only.
void multiply(const Product<float, float>& p);
void multiply(const Product<bf16, float>& p);
void multiply(const Product<bf16, bf16>& p);

// The same bits as multiply, for few rows; operands are not transposed.
void multiply_few_rows(const Product<float, float>& p);

// c = start + x^T dy, for many rows of x and dy; sums[n] += sum_r dy[r, n] unless nullptr. No
// threads: one tile of a gradient of weights.
template <class A>
struct GradientTile {
  Matrix<const A> x, dy;
  Start start;
  Matrix<float> c;
  float* sums;
};

void multiply_tile(const GradientTile<float>& t);
void multiply_tile(const GradientTile<bf16>& t);

// sums[n] += sum_r dy[r, n]. No threads.
void add_column_sums(Matrix<const bf16> dy, float* sums);

// dweight[k, n] += sum_r x[r, k] dy[r, n], dbias[n] += sum_r dy[r, n] (unless empty).
template <class A>
struct WeightGradient {
  Matrix<const A> x, dy;
  Matrix<float> dweight;
  Vector<float> dbias;
};

void add_weight_gradient(const WeightGradient<float>& g);
void add_weight_gradient(const WeightGradient<bf16>& g);

}  // namespace longstride::ops::cpu
