// The flat parameter array seen as the tensors of the network. With T const these are weights, with
// T mutable their gradients. The matrices that products read may come from a second array of the
// same layout in type A (bf16 copies of float weights).
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "longstride/error.h"
#include "model/parameters.h"
#include "tensor/tensor.h"

namespace longstride {

inline constexpr double kFinalNormEps = 1e-6;  // 1e-5 in the blocks: facts.md section 2

template <class T>
struct NormWeights {
  Vector<T> gain, bias;  // [d]
};

template <class T, class A = T>
struct LinearWeights {
  Matrix<A> weight;  // [in, out]
  Vector<T> bias;    // [out]
};

template <class T, class A = T>
struct BlockWeights {
  NormWeights<T> norm1;
  LinearWeights<T, A> q, k, v, out;
  NormWeights<T> norm2;
  LinearWeights<T, A> ff1, ff2;
};

template <class T, class A = T>
struct ModelWeights {
  Matrix<T> bytes;              // [256, d]
  std::vector<Matrix<T>> axes;  // [extent, d]
  Vector<T> start;              // [d]
  std::vector<BlockWeights<T, A>> blocks;
  NormWeights<T> norm;
  Matrix<A> head;  // [d, 256]
};

// Walks the layout in its own order, the one in which parameters.cc appends.
template <class T, class A>
ModelWeights<T, A> view_weights(const ModelConfig& model, const ParameterLayout& layout,
                                Vector<T> flat, Vector<A> matrices) {
  if (flat.size != layout.extent || matrices.size != layout.extent)
    throw internal_error("weights: arrays of ", flat.size, " and ", matrices.size,
                         " elements, want ", layout.extent);
  std::size_t next = 0;
  const auto vector = [&] {
    const Parameter& p = layout.tensors.at(next++);
    return Vector<T>{flat.data + p.offset, p.size};
  };
  const auto table = [&] {
    const Parameter& p = layout.tensors.at(next++);
    return matrix(flat.data + p.offset, p.shape.at(0), p.shape.at(1));
  };
  const auto norm = [&] {
    const Vector<T> gain = vector(), bias = vector();
    return NormWeights<T>{gain, bias};
  };
  const auto factor = [&] {
    const Parameter& p = layout.tensors.at(next++);
    return matrix(matrices.data + p.offset, p.shape.at(0), p.shape.at(1));
  };
  const auto linear = [&] {
    const Matrix<A> weight = factor();
    return LinearWeights<T, A>{weight, vector()};
  };

  ModelWeights<T, A> w;
  w.bytes = table();
  for (std::size_t a = model.position_axes().size(); a > 0; --a) w.axes.push_back(table());
  w.start = vector();
  w.blocks.resize(static_cast<std::size_t>(model.layers));
  for (auto& b : w.blocks) {
    b.norm1 = norm();
    b.q = linear();
    b.k = linear();
    b.v = linear();
    b.out = linear();
    b.norm2 = norm();
    b.ff1 = linear();
    b.ff2 = linear();
  }
  w.norm = norm();
  w.head = factor();
  if (next != layout.tensors.size())
    throw internal_error("weights: ", layout.tensors.size(), " tensors, the model takes ", next);
  return w;
}

template <class T>
ModelWeights<T> view_weights(const ModelConfig& model, const ParameterLayout& layout,
                             Vector<T> flat) {
  return view_weights(model, layout, flat, flat);
}

}  // namespace longstride
