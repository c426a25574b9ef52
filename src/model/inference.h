// The network without dropout or gradients, with kernels whose rows do not depend on their
// neighbours: the full pass, and one position at a time out of a sparse cache. Both give the same
// bits at every position.
#pragma once

#include <cstdint>
#include <memory>

#include "longstride/config.h"
#include "tensor/tensor.h"

namespace longstride {

// What a FullPass<float> of this model owns.
std::int64_t full_pass_bytes(const ModelConfig& model);

template <class T>
class FullPass {
 public:
  explicit FullPass(const ModelConfig& model);
  ~FullPass();

  // tokens [length], length <= context. logits [length, 256], of the byte at each position given
  // those before it. (Row i does not depend on tokens[i] and later.)
  void logits(Vector<const T> weights, const std::uint8_t* tokens, std::int64_t length,
              Matrix<T> out);

  // nats [length]: -log p of each byte.
  void nats(Vector<const T> weights, const std::uint8_t* tokens, std::int64_t length,
            Vector<T> out);

 private:
  struct State;
  std::unique_ptr<State> state_;
};

template <class T>
class Decoder {
 public:
  // `weights` must outlive the decoder.
  Decoder(const ModelConfig& model, Vector<const T> weights);
  ~Decoder();

  // Position of the byte that the next step() predicts.
  std::int64_t position() const;
  // logits [256] of the byte at position(); then position() grows by one. `previous` is the byte at
  // position() - 1 (ignored at position 0). Throws where position() has reached the context.
  Vector<const T> step(std::uint8_t previous);
  void restart();  // position 0, empty cache
  std::int64_t cache_bytes() const;

 private:
  struct State;
  std::unique_ptr<State> state_;
};

extern template class FullPass<float>;
extern template class FullPass<double>;
extern template class Decoder<float>;
extern template class Decoder<double>;

}  // namespace longstride
