// y = x W + b
//
//   y[r, n] = sum_k x[r, k] W[k, n] + b[n]
//   dx[r, k] = sum_n dy[r, n] W[k, n]     dW[k, n] += sum_r x[r, k] dy[r, n]     db[n] += sum_r
//   dy[r, n]
//
// Overloads: float and bf16 run fast on fixed tiles, so the bits do not depend on the thread count;
// double runs the plain formula of linear_ref.h. bf16 products are summed in float and rounded
// once, at the end; oneDNN makes them where the CPU has bf16 instructions, else the same values are
// multiplied in float.
//
// linear_forward of float: each output row has bits that depend on its own input row only, never on
// how many rows are in the call. This is what makes decoding one position equal the full pass, bit
// for bit, and results independent of batching.
#pragma once

#include "tensor/bf16.h"
#include "tensor/tensor.h"

namespace longstride::ops {

template <class A, class Y = A>
struct Linear {
  Matrix<const A> x;                  // [R, K]
  Matrix<const A> weight;             // [K, N]
  Vector<const Accumulated<A>> bias;  // [N] or empty
  Matrix<Y> y;                        // [R, N], overwritten
};

void linear_forward(const Linear<float>& op);
void linear_forward(const Linear<double>& op);
void linear_forward(const Linear<bf16>& op);
void linear_forward(const Linear<bf16, float>& op);

template <class A, class D = A>
struct LinearBackward {
  Matrix<const A> x, weight, dy;   // [R, K], [K, N], [R, N]
  Matrix<D> dx;                    // [R, K]; empty: not wanted
  bool add_to_dx = false;          // dx += instead of dx =; not for a dx of bf16
  Matrix<Accumulated<A>> dweight;  // [K, N], +=
  Vector<Accumulated<A>> dbias;    // [N], +=; empty: no bias
};

void linear_backward(const LinearBackward<float>& op);
void linear_backward(const LinearBackward<double>& op);
void linear_backward(const LinearBackward<bf16>& op);
void linear_backward(const LinearBackward<bf16, float>& op);

// Whether the CPU has instructions for products of bf16 (AVX512_BF16, AMX).
bool bf16_is_native();

namespace cpu {  // shapes are checked
void linear_forward(const Linear<float>& op);
void linear_forward(const Linear<bf16>& op);
void linear_forward(const Linear<bf16, float>& op);
void linear_backward(const LinearBackward<float>& op);
void linear_backward(const LinearBackward<bf16>& op);
void linear_backward(const LinearBackward<bf16, float>& op);
}  // namespace cpu

}  // namespace longstride::ops
