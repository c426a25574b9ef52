// Bits of each symbol of a byte sequence under a model, window by window. Reads only: neither
// weights nor any state of training change.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "eval/windows.h"
#include "longstride/config.h"
#include "model/inference.h"
#include "tensor/tensor.h"

namespace longstride {

// The seam between what is scored and the device that does it.
class WindowScorer {
 public:
  virtual ~WindowScorer() = default;

  // Must stay there and as they are until the last score(). On the GPU: in host or device memory.
  virtual void use(Vector<const float> weights) = 0;

  // Bits (-log2 p) of the symbols that windows [first, last) score, in order, appended to `bits`.
  // Window positions count from `data`.
  virtual void score(const std::uint8_t* data, const Windows& windows, std::int64_t first,
                     std::int64_t last, std::vector<double>& bits) = 0;

  // How many windows are best given to one call: enough to fill the device, few enough for
  // progress.
  virtual std::int64_t group() const = 0;
};

// On the CPU, in float32. A symbol's bits depend on its window alone.
class Scorer : public WindowScorer {
 public:
  explicit Scorer(const ModelConfig& model);
  void use(Vector<const float> weights) override { weights_ = weights; }
  void score(const std::uint8_t* data, const Windows& windows, std::int64_t first,
             std::int64_t last, std::vector<double>& bits) override;
  std::int64_t group() const override;

 private:
  // Small windows run side by side, one pass (and its memory) each; large ones one by one, with
  // the threads inside.
  struct Worker {
    FullPass<float> pass;
    Buffer<float> nats;  // [context]
  };
  std::vector<std::unique_ptr<Worker>> workers_;
  Vector<const float> weights_;
};

// Memory that a Scorer of this model takes with the threads now set.
std::int64_t scorer_bytes(const ModelConfig& model);

// On the GPU; precision of products and attention: "f32" or "bf16". A symbol's bits depend on its
// window and, within rounding, on how many windows are scored together.
std::unique_ptr<WindowScorer> make_cuda_scorer(const ModelConfig& model,
                                               const std::string& precision);
// Device memory that it takes, with weights that are in host memory.
std::int64_t cuda_scorer_bytes(const ModelConfig& model, const std::string& precision);

// Mean bits of the first `symbols` of `data` in windows of the whole context, summed in order.
double mean_bits(WindowScorer& scorer, Vector<const float> weights, const std::uint8_t* data,
                 std::int64_t symbols, std::int64_t context);

}  // namespace longstride
