// What the tests of the predictors share.
#pragma once

#include <random>
#include <string>

#include "longstride/config.h"
#include "model/parameters.h"
#include "tensor/tensor.h"

namespace longstride::test {

inline ModelConfig small_model(const std::string& pattern) {
  ModelConfig model;
  model.layers = 2;
  model.width = 16;
  model.heads = 2;
  model.context = 24;
  model.attention = {pattern};
  return model;
}

inline Buffer<float> random_weights(
    const ModelConfig& model) {  // the output too, which starts at zero
  const ParameterLayout layout(model);
  Buffer<float> weights(layout.extent);
  std::mt19937_64 random(5);
  std::normal_distribution<float> normal(0, 0.3f);
  for (const auto& t : layout.tensors)
    for (std::int64_t e = 0; e < t.size; ++e) weights[t.offset + e] = normal(random);
  return weights;
}

}  // namespace longstride::test
