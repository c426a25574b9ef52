// One update: gradients of a batch, added up over micro-batches; the guard against non-finite
// numbers; clip; AdamW. Everything is a function of (weights, moments, seed, step): a step done
// again gives the same bits.
#pragma once

#include <cstdint>

#include "data/dataset.h"
#include "longstride/config.h"
#include "model/parameters.h"
#include "model/training_pass.h"
#include "ops/adamw/adamw.h"
#include "tensor/tensor.h"

namespace longstride {

// What updates change, and all they change.
struct TrainState {
  TrainState(const Config& config, const ParameterLayout& layout);  // as before step 0

  Buffer<float> weights, m, v;  // [extent]
  Buffer<float> average;        // of the weights; empty where train.ema is 0
  std::int64_t step = 0;        // steps done, skipped ones included
  std::int64_t skipped = 0, skipped_in_a_row = 0;

  // The weights to validate, evaluate and sample with.
  Vector<const float> evaluated() const {
    return average.size() ? average.vector() : weights.vector();
  }
};

struct StepOutcome {
  double bits = 0;       // a symbol
  double grad_norm = 0;  // before clipping
  double lr = 0;
  bool skipped = false;  // non-finite: nothing was changed but the counts
};

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
  const std::uint8_t* data_;
  WindowOrder order_;
  TrainingPass<float> pass_;
  std::vector<ops::DecayRange> decayed_;
  Buffer<float> gradients_;           // [extent]
  std::vector<std::uint8_t> tokens_;  // [micro_batch, context]
};

// Name of the first tensor that holds a NaN or an infinity, or "".
std::string first_nonfinite(const ParameterLayout& layout, Vector<const float> flat);

}  // namespace longstride
