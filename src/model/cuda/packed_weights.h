// Where each product's weights lie in the packed array that the GPU's products read (ops/fold):
// norms folded in, q, k and v side by side. Gradients of the packed weights have the same layout,
// in float.
#pragma once

#include <cstdint>
#include <vector>

#include "longstride/config.h"
#include "model/parameters.h"
#include "ops/fold/fold_cuda.h"
#include "tensor/tensor.h"

namespace longstride {

// Offsets in elements; weight [in, out] contiguous, bias [out].
struct PackedMap {
  std::int64_t in = 0, out = 0, weight = 0, bias = 0;

  template <class W, class B>
  struct View {
    Matrix<W> weight;
    Vector<B> bias;
  };
  template <class W, class B>
  View<W, B> of(Vector<W> weights, Vector<B> biases) const {
    return {matrix(weights.data + weight, in, out), {biases.data + bias, out}};
  }
};

struct PackedBlock {
  PackedMap qkv, out, ff1, ff2;  // [d, 2 qk + d], [d, d], [d, ff], [ff, d]
};

struct PackedWeights {
  PackedWeights(const ModelConfig& model, const ParameterLayout& layout);

  std::vector<PackedBlock> blocks;
  PackedMap head;  // [d, 256]; its bias is what the norm's bias gives
  std::int64_t extent = 0, bias_extent = 0;
  std::int64_t embedding_extent = 0;  // flat elements before the first block: tables, start symbol
  std::vector<ops::cuda::FoldItem> items;
};

}  // namespace longstride
