// Bytes and positions to vectors, shifted right by one.
//
//   y[b, 0] = start                                       (dropout-free)
//   y[b, i] = E[x[b, i-1]] + sum_a P_a[index_a(i-1)]      i >= 1
//
// index_a(i): i written in the mixed radix of the axes (last axis fastest): axes {rows, columns,
// channels}: i = (row * columns + column) * channels + channel. As in the released code, step i
// sees the position of byte i-1, and byte N-1 is never an input.
// Backward: columns of each table are divided among tasks; each walks the rows in order.
#pragma once

#include <cstdint>
#include <vector>

#include "tensor/tensor.h"

namespace longstride::ops {

template <class T>
struct Embedding {
  const std::uint8_t* tokens = nullptr;  // [B, N], row-major
  std::int64_t batch = 0, length = 0;
  std::int64_t first = 0;  // y row 0 of each sequence is position `first` (decode: one row)
  Matrix<const T> bytes;   // [256, d]
  std::vector<Matrix<const T>> axes;  // [extent_a, d] each; product of extents >= N - 1
  Vector<const T> start;              // [d]
  Matrix<T> y;                        // [B * N, d]
  // With first > 0, tokens holds positions first .. first + N - 1 and `previous` (B bytes) those at
  // first - 1.
  const std::uint8_t* previous = nullptr;
};

void embedding(const Embedding<float>& op);
void embedding(const Embedding<double>& op);

template <class T>
struct EmbeddingBackward {
  const std::uint8_t* tokens = nullptr;  // [B, N]
  std::int64_t batch = 0, length = 0;
  Matrix<const T> dy;            // [B * N, d]
  Matrix<T> dbytes;              // [256, d], +=
  std::vector<Matrix<T>> daxes;  // +=
  Vector<T> dstart;              // +=
};

void embedding_backward(const EmbeddingBackward<float>& op);
void embedding_backward(const EmbeddingBackward<double>& op);

namespace cpu {  // shapes are checked
void embedding(const Embedding<float>& op);
void embedding_backward(const EmbeddingBackward<float>& op);
}  // namespace cpu

}  // namespace longstride::ops
