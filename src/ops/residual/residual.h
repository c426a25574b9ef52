// The end of a residual branch: y = h + dropout(x).
//
//   dropout(x)[r,c] = keep[r,c] x[r,c] / (1 - p)       keep with probability 1 - p
//   backward: dx = keep dy / (1 - p);  dh = dy (the caller keeps adding into the same buffer)
//
// keep is a function of (seed, step, lane, element index), Philox, four elements a draw; element
// index = (first_row + r) * C + c, so it depends neither on threads nor on micro-batches, and the
// recomputed forward draws the same. keep when word >= round(p * 2^32).
#pragma once

#include <cstdint>

#include "tensor/bf16.h"
#include "tensor/tensor.h"

namespace longstride::ops {

struct Dropout {
  double p = 0;  // 0: off
  std::uint64_t seed = 0;
  std::uint64_t step = 0;      // training step
  std::uint32_t lane = 0;      // layer * 2 + branch
  std::int64_t first_row = 0;  // of this micro-batch within the step
};

template <class T, class A = T>
struct Residual {
  Matrix<const T> h;  // [R, C], contiguous
  Matrix<const A> x;  // [R, C], contiguous
  Matrix<T> y;        // [R, C], may be h
  Dropout dropout;
};

void residual(const Residual<float>& op);
void residual(const Residual<double>& op);
void residual(const Residual<float, bf16>& op);

template <class T, class A = T>
struct ResidualBackward {
  Matrix<const T> dy;
  Matrix<A> dx;  // overwritten; may not be dy
  Dropout dropout;
};

void residual_backward(const ResidualBackward<float>& op);
void residual_backward(const ResidualBackward<double>& op);
void residual_backward(const ResidualBackward<float, bf16>& op);

namespace cpu {  // shapes are checked
void residual(const Residual<float>& op);
void residual(const Residual<float, bf16>& op);
void residual_backward(const ResidualBackward<float>& op);
void residual_backward(const ResidualBackward<float, bf16>& op);
}  // namespace cpu

}  // namespace longstride::ops
