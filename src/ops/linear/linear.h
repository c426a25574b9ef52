// y = x W + b
//
//   y[r, n] = sum_k x[r, k] W[k, n] + b[n]
//   dx[r, k] = sum_n dy[r, n] W[k, n]     dW[k, n] += sum_r x[r, k] dy[r, n]     db[n] += sum_r
//   dy[r, n]
//
// Overloads: float runs fast (oneDNN on fixed tiles, so the bits do not depend on the thread
// count), double runs the plain formula of linear_ref.h.
#pragma once

#include "tensor/tensor.h"

namespace longstride::ops {

template <class T>
struct Linear {
  Matrix<const T> x;       // [R, K]
  Matrix<const T> weight;  // [K, N]
  Vector<const T> bias;    // [N] or empty
  Matrix<T> y;             // [R, N], overwritten
};

void linear_forward(const Linear<float>& op);
void linear_forward(const Linear<double>& op);

// The same formula for inference: each output row has bits that depend on its own input row only,
// never on how many rows are in the call. This is what makes decoding one position equal the full
// pass, bit for bit, and results independent of batching. (For double: linear_forward.)
void linear_rows(const Linear<float>& op);
void linear_rows(const Linear<double>& op);

template <class T>
struct LinearBackward {
  Matrix<const T> x, weight, dy;  // [R, K], [K, N], [R, N]
  Matrix<T> dx;                   // [R, K]; empty: not wanted
  bool add_to_dx = false;         // dx += instead of dx =
  Matrix<T> dweight;              // [K, N], +=
  Vector<T> dbias;                // [N], +=; empty: no bias
};

void linear_backward(const LinearBackward<float>& op);
void linear_backward(const LinearBackward<double>& op);

namespace cpu {  // shapes are checked
void linear_forward(const Linear<float>& op);
void linear_rows(const Linear<float>& op);
void linear_backward(const LinearBackward<float>& op);
}  // namespace cpu

}  // namespace longstride::ops
