// Forward and backward pass of the transformer over a micro-batch on the GPU, and the forward pass
// alone to score sequences. Owns every activation, planned at construction: nothing is allocated
// afterwards, nothing waits for the host, so that a step can be captured into a graph.
//
//   begin(weights); run(tokens) once a micro-batch; end(); gradients()
#pragma once

#include <cstdint>
#include <memory>

#include "device/cuda.h"
#include "longstride/config.h"
#include "model/cuda/pass_plan.h"
#include "tensor/tensor.h"

namespace longstride {

struct DevicePassKey {
  std::uint64_t seed = 0;
  const std::int64_t* step = nullptr;  // in device memory: dropout is a function of it
  std::int64_t first_sequence = 0;     // of the micro-batch within the step
};

// A: what products and attention read: float, bf16, fp16.
template <class A>
class DeviceTrainingPass {
 public:
  // batch: sequences at once.
  DeviceTrainingPass(const ModelConfig& model, std::int64_t batch, const DevicePassPlan& plan);
  ~DeviceTrainingPass();

  // weights: flat [extent] in device memory, read until end(). Makes the copies that products read.
  void begin(device::Stream stream, Vector<const float> weights);

  // tokens [batch, context] in device memory. Adds the gradient of scale * sum -log p (times
  // *loss_scale, where set) to what end() gives, and the sum of -log p to *nats(). More than once
  // only if the plan says so.
  void run(device::Stream stream, const std::uint8_t* tokens, const DevicePassKey& key, float scale,
           const double* loss_scale = nullptr);

  void end(device::Stream stream);
  // Flat [extent] in device memory: valid between end() and the next begin().
  Vector<float> gradients() const;

  const double* nats() const;  // device memory: over the runs since begin()

  // No dropout, no gradients: nats [sequences * length] of tokens [sequences, length], sequences <=
  // batch, length <= context. logits [sequences * length, 256], or empty.
  void score(device::Stream stream, const std::uint8_t* tokens, std::int64_t sequences,
             std::int64_t length, Vector<float> nats, Matrix<float> logits = {});

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace longstride
