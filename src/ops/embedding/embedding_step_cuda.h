// The input of decoding on the GPU: one new position of each of a batch of sequences; formulas in
// embedding.h.
#pragma once

#include <cstdint>
#include <vector>

#include "device/cuda.h"
#include "tensor/tensor.h"

namespace longstride::ops::cuda {

struct EmbeddingStep {
  // Byte i of sequence s at tokens[s * stride + i]; those below positions[s] are read.
  const std::uint8_t* tokens = nullptr;
  std::int64_t stride = 0;
  const std::int32_t* positions = nullptr;  // [S]
  Matrix<const float> bytes;                // [256, d]
  std::vector<Matrix<const float>> axes;    // at most 4; read on the host, as in Embedding
  Vector<const float> start;                // [d]
  Matrix<float> y;                          // [S, d]
};
void embedding_step(device::Stream stream, const EmbeddingStep& op);

// positions[s] += 1
void next_position(device::Stream stream, Vector<std::int32_t> positions);

}  // namespace longstride::ops::cuda
