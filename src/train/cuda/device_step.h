// One training step on the GPU as work on a stream, the same for every step: what differs is read
// from device memory (tokens, number of the step, learning rate, loss scale). So it is put on the
// stream once and run again as a graph.
//
//   fold; forward and backward of each micro-batch; unfold; norm, guard, clip, AdamW, average
#pragma once

#include <cstdint>

#include "device/cuda.h"
#include "longstride/config.h"
#include "model/cuda/training_pass_cuda.h"
#include "model/parameters.h"
#include "ops/adamw/adamw_cuda.h"
#include "train/train_state.h"

namespace longstride {

DevicePassPlan pass_plan(const TrainConfig& train, const Recompute& again);

template <class A>
class DeviceStep {
 public:
  DeviceStep(const Config& config, const ParameterLayout& layout, const Recompute& again);
  // Device memory besides the pass and its gradients, weights, moments and averages.
  static std::int64_t scratch_bytes(const Config& config, const ParameterLayout& layout);

  void push(device::Stream stream, const TrainState& state) const;  // tensors and counts
  void pull(device::Stream stream, const TrainState& state) const;  // tensors, into the host's
  void pull_gradients(device::Stream stream, Vector<float> gradients) const;

  // Copies to and from the device, in order with the rest. tokens [batch, context].
  void give(device::Stream stream, const std::uint8_t* tokens,
            const ops::cuda::StepInput* input) const;
  void take(device::Stream stream, ops::cuda::StepState* state) const;

  void run(device::Stream stream);        // the whole step
  void gradients(device::Stream stream);  // its first half: nothing is updated

  // Nats of each symbol of tokens [sequences, length] under the weights to evaluate, into nats
  // [sequences * length]: both on the host, pinned. sequences <= micro_batch, length <= context.
  void begin_score(device::Stream stream);
  void score(device::Stream stream, const std::uint8_t* tokens, std::int64_t sequences,
             std::int64_t length, float* nats);

 private:
  std::int64_t batch_, micro_, context_;
  std::uint64_t seed_;
  device::DeviceBuffer<float> weights_, m_, v_, average_;  // [extent]
  device::DeviceBuffer<std::uint8_t> tokens_;              // [batch, context]
  device::DeviceBuffer<float> nats_;                       // [micro_batch, context]
  device::DeviceBuffer<ops::cuda::StepInput> input_;       // one
  device::DeviceBuffer<ops::cuda::StepState> state_;       // one
  DeviceTrainingPass<A> pass_;
  ops::cuda::Update update_;
};

}  // namespace longstride
