// Where each product's weights lie in the packed array that the GPU's products read (ops/fold):
// norms folded in, q, k and v side by side.
//
// Gradients of the packed weights stand in the flat array of gradients, each where that of the
// parameter shall be; those of q, k and v side by side in the place of all three and their biases.
// out and ff2 have no norm in front, so that theirs are the parameters'.
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

// Offsets into the flat array of gradients.
struct PackedGradients {
  PackedGradients(const ModelConfig& model, const ParameterLayout& layout);

  // What is to be unfolded where it stands: all but q, k and v. Packed array: that of the gradients
  // itself.
  std::vector<ops::cuda::FoldItem> in_place;
  // Unfolds q, k and v of blocks [first, first + count) from copies of `aside` floats each.
  std::vector<ops::cuda::FoldItem> from_copies(std::int64_t first, std::int64_t count) const;

  std::vector<PackedBlock> blocks;
  PackedMap head;           // its bias stands behind all gradients
  std::int64_t aside;       // floats from blocks[r].qkv.weight on: of q, k, v side by side
  std::int64_t block_step;  // floats from block to block
  std::int64_t after_blocks;

 private:
  const ModelConfig model_;
  const ParameterLayout layout_;
};

}  // namespace longstride
