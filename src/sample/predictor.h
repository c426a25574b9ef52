// Logits of the next byte of growing sequences, out of the sparse cache or by the full pass. Both
// see the same window of a sequence; on the CPU they give the same bits, on the GPU the same within
// rounding.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "longstride/config.h"
#include "tensor/tensor.h"

namespace longstride {

// First byte that the model sees when it predicts the byte after `history` ones. 0 until the
// context is full; then the last context/2 stay, until it is full again:
//   begin(h) = 0 for h < C, else (floor((h - C) / s) + 1) s        s = C - floor(C/2)
// so that a window holds floor(C/2) to C - 1 earlier bytes.
std::int64_t window_begin(std::int64_t history, std::int64_t context);

// The seam between what is sampled and the device that predicts it.
class Predictor {
 public:
  virtual ~Predictor() = default;
  virtual std::int64_t most() const { return 1; }  // sequences side by side
  // [S, 256] behind S = 1 to most() histories of the same length. S stays and each history only
  // ever grows between calls, until restart(). A row does not depend on the others.
  virtual Matrix<const float> next(const std::vector<std::string>& histories) = 0;
  virtual void restart() = 0;
  virtual std::int64_t cache_bytes() const = 0;
};

// On the CPU, in float32. `weights` must outlive it.
std::unique_ptr<Predictor> make_predictor(const ModelConfig& model, Vector<const float> weights,
                                          bool cache);

// On the GPU, for up to `sequences` side by side, or as many as memory and kernels take; precision
// "f32" or "bf16". `weights`, in host memory, need not outlive it.
std::unique_ptr<Predictor> make_cuda_predictor(const ModelConfig& model,
                                               Vector<const float> weights, bool cache,
                                               std::int64_t sequences,
                                               const std::string& precision);

}  // namespace longstride
