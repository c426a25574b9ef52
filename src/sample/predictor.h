// Logits of the next byte of a growing sequence, out of the sparse cache or by the full pass. Both
// see the same window of the sequence and give the same bits.
#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "longstride/config.h"
#include "tensor/tensor.h"

namespace longstride {

// First byte that the model sees when it predicts the byte after `history` ones. 0 until the
// context is full; then the last context/2 stay, until it is full again:
//   begin(h) = 0 for h < C, else (floor((h - C) / s) + 1) s        s = C - floor(C/2)
// so that a window holds floor(C/2) to C - 1 earlier bytes.
std::int64_t window_begin(std::int64_t history, std::int64_t context);

class Predictor {
 public:
  virtual ~Predictor() = default;
  // `history` only ever grows between calls, until restart().
  virtual Vector<const float> next(const std::string& history) = 0;
  virtual void restart() = 0;
  virtual std::int64_t cache_bytes() const = 0;
};

// `weights` must outlive it.
std::unique_ptr<Predictor> make_predictor(const ModelConfig& model, Vector<const float> weights,
                                          bool cache);

}  // namespace longstride
