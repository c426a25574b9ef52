// Bytes and positions to vectors on the GPU; formulas in embedding.h.
#pragma once

#include <cstdint>
#include <vector>

#include "device/cuda.h"
#include "tensor/tensor.h"

namespace longstride::ops::cuda {

// As ops::Embedding<float>, all arrays in device memory; `axes` itself is read on the host.
struct Embedding {
  const std::uint8_t* tokens = nullptr;  // [B, N]
  std::int64_t batch = 0, length = 0;
  Matrix<const float> bytes;              // [256, d]
  std::vector<Matrix<const float>> axes;  // at most 4
  Vector<const float> start;
  Matrix<float> y;  // [B * N, d]
};
void embedding(device::Stream stream, const Embedding& op);

struct EmbeddingBackward {
  const std::uint8_t* tokens = nullptr;
  std::int64_t batch = 0, length = 0;
  Matrix<const float> dy;  // [B * N, d]
  Matrix<float> dbytes;    // += all three
  std::vector<Matrix<float>> daxes;
  Vector<float> dstart;
  Vector<float> scratch;  // embedding_backward_scratch() floats
};
std::int64_t embedding_backward_scratch(std::int64_t batch, std::int64_t length, std::int64_t width,
                                        const std::vector<std::int64_t>& axes);
void embedding_backward(device::Stream stream, const EmbeddingBackward& op);

}  // namespace longstride::ops::cuda
