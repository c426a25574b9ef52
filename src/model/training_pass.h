// One forward and backward pass of the transformer over a micro-batch. Owns every activation it
// needs, planned at construction: no allocation afterwards.
#pragma once

#include <cstdint>
#include <memory>

#include "longstride/config.h"
#include "tensor/tensor.h"

namespace longstride {

struct TrainingBytes {
  std::int64_t kept = 0;     // lives between forward and backward
  std::int64_t scratch = 0;  // shared by all layers
  std::int64_t total() const { return kept + scratch; }
};

// What a TrainingPass<float> of this shape will own.
TrainingBytes training_bytes(const ModelConfig& model, std::int64_t batch, bool recompute,
                             bool in_bf16);

struct PassKey {  // what dropout is a function of
  std::uint64_t seed = 0, step = 0;
  std::int64_t first_sequence = 0;  // of the micro-batch within the step
};

template <class T>
class AnyPass {
 public:
  virtual ~AnyPass() = default;
  virtual double run(Vector<const T> weights, const std::uint8_t* tokens, double scale,
                     const PassKey& key, Vector<T> gradients) = 0;
};

template <class T>
class TrainingPass {
 public:
  // `recompute`: only the input of each block is kept and the block runs again in backward. Same
  // bits either way. `in_bf16`: TrainConfig::precision is "bf16"; T is float.
  TrainingPass(const ModelConfig& model, std::int64_t batch, bool recompute, bool in_bf16 = false);
  ~TrainingPass();

  // tokens [batch, context]. Returns the sum of -log p over all batch * context bytes, in nats;
  // gradients += scale * its derivative. Pass an empty gradients vector for the loss alone.
  double run(Vector<const T> weights, const std::uint8_t* tokens, double scale, const PassKey& key,
             Vector<T> gradients);

 private:
  std::unique_ptr<AnyPass<T>> pass_;
};

extern template class TrainingPass<float>;
extern template class TrainingPass<double>;

}  // namespace longstride
