// Bits of each symbol of a byte sequence under a model, window by window. Reads only: neither
// weights nor any state of training change.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "eval/windows.h"
#include "longstride/config.h"
#include "model/inference.h"
#include "tensor/tensor.h"

namespace longstride {

// Memory that a Scorer of this model takes with the threads now set.
std::int64_t scorer_bytes(const ModelConfig& model);

class Scorer {
 public:
  explicit Scorer(const ModelConfig& model);

  // Bits (-log2 p) of the symbols that windows [first, last) score, in order, appended to `bits`.
  // Window positions count from `data`. A symbol's bits depend on its window alone.
  void score(Vector<const float> weights, const std::uint8_t* data, const Windows& windows,
             std::int64_t first, std::int64_t last, std::vector<double>& bits);

  // How many windows are best given to one call: enough for all workers, few enough for progress.
  std::int64_t group() const;

 private:
  // Small windows run side by side, one pass (and its memory) each; large ones one by one, with
  // the threads inside.
  struct Worker {
    FullPass<float> pass;
    Buffer<float> nats;  // [context]
  };
  std::vector<std::unique_ptr<Worker>> workers_;
};

// Mean bits of the first `symbols` of `data` in windows of the whole context, summed in order.
double mean_bits(Scorer& scorer, Vector<const float> weights, const std::uint8_t* data,
                 std::int64_t symbols, std::int64_t context);

}  // namespace longstride
