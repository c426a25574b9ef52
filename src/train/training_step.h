// One update on the CPU: gradients of a batch, added up over micro-batches; the guard against
// non-finite numbers; clip; AdamW. Everything is a function of (weights, moments, seed, step): a
// step done again gives the same bits.
#pragma once

#include <cstdint>
#include <vector>

#include "data/dataset.h"
#include "longstride/config.h"
#include "model/parameters.h"
#include "model/training_pass.h"
#include "ops/adamw/adamw.h"
#include "tensor/tensor.h"
#include "train/batches.h"
#include "train/train_state.h"

namespace longstride {

// The elements that weight decay applies to.
std::vector<ops::DecayRange> decayed_ranges(const ParameterLayout& layout);

class TrainingStep {
 public:
  // `data` is the whole byte sequence, `train` the span of it to learn from; both must outlive
  // this.
  TrainingStep(const Config& config, const ParameterLayout& layout, bool recompute,
               const std::uint8_t* data, Span train);

  // Step number state.step. Throws (numerics) where loss or gradient is not finite and the policy
  // is "stop", or at the 11th such step in a row; the state is then as before.
  StepOutcome run(TrainState& state);

  // The first half of run(): fills gradients(), returns the nats of the whole batch.
  double accumulate(const TrainState& state);
  Vector<float> gradients() const { return gradients_.vector(); }

 private:
  void refuse_or_skip(TrainState& state, const StepOutcome& outcome) const;
  void update(TrainState& state, const StepOutcome& outcome) const;

  Config config_;
  const ParameterLayout& layout_;
  Batches batches_;
  TrainingPass<float> pass_;
  std::vector<ops::DecayRange> decayed_;
  Buffer<float> gradients_;           // [extent]
  std::vector<std::uint8_t> tokens_;  // [micro_batch, context]
};

}  // namespace longstride
