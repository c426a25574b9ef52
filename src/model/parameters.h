// Names, shapes and places of all parameters of a model in one flat array, and how each begins.
//
//   bytes [256, d]  position.A [extent, d]  start [d]
//   layers.R.norm1.{gain,bias} [d]   layers.R.{q,k}.{weight [d, qk], bias}   layers.R.v.{weight [d,
//   d], bias} layers.R.out.{weight [d, d], bias}   layers.R.norm2.{gain,bias} layers.R.ff1.{weight
//   [d, ff], bias}  layers.R.ff2.{weight [ff, d], bias} norm.{gain,bias} [d]   head.weight [d, 256]
//   (no bias, zero at first)
//
// Weights start as N(0, 0.125 / d_in) (variance); out and ff2 have 1/sqrt(2 layers) of that
// deviation; byte vectors N(0, 0.125/d), positions N(0, 0.125/(d n_axes)), the start symbol as
// bytes; biases 0, gains 1. (facts.md section 2.)
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "longstride/config.h"
#include "tensor/tensor.h"

namespace longstride {

struct Parameter {
  std::string name;
  std::vector<std::int64_t> shape;
  std::int64_t offset = 0;  // elements into the flat array, a multiple of 16
  std::int64_t size = 0;
  double deviation = 0;  // of the initial normal; 0: constant
  double constant = 0;
  bool decays() const { return shape.size() > 1; }
};

struct ParameterLayout {
  explicit ParameterLayout(const ModelConfig& model);
  std::vector<Parameter> tensors;
  std::int64_t count = 0;   // parameters
  std::int64_t extent = 0;  // elements of the flat array, padding included (padding stays zero)
};

// Fills the flat array. Element e of tensor t is a function of (seed, t, e) alone.
template <class T>
void initialise(const ParameterLayout& layout, std::uint64_t seed, Vector<T> weights);

extern template void initialise(const ParameterLayout&, std::uint64_t, Vector<float>);
extern template void initialise(const ParameterLayout&, std::uint64_t, Vector<double>);

}  // namespace longstride
