// What training changes from step to step, and what one step says.
#pragma once

#include <cstdint>
#include <string>

#include "longstride/config.h"
#include "longstride/error.h"
#include "model/parameters.h"
#include "tensor/tensor.h"

namespace longstride {

// What updates change, and all they change.
struct TrainState {
  TrainState(const Config& config, const ParameterLayout& layout);  // as before step 0

  Buffer<float> weights, m, v;  // [extent]
  Buffer<float> average;        // of the weights; empty where train.ema is 0
  std::int64_t step = 0;        // steps done, skipped ones included
  std::int64_t skipped = 0, skipped_in_a_row = 0;
  double loss_scale = 1;  // of the next step; 1 but in fp16

  // The weights to validate, evaluate and sample with.
  Vector<const float> evaluated() const {
    return average.size() ? average.vector() : weights.vector();
  }
};

struct StepOutcome {
  double bits = 0;       // a symbol
  double grad_norm = 0;  // before clipping
  double lr = 0;
  double seconds = 0;
  bool skipped = false;  // non-finite: nothing was changed but the counts
};

inline constexpr std::int64_t kMostSkippedInARow = 10;

// Name of the first tensor that holds a NaN or an infinity, or "".
std::string first_nonfinite(const ParameterLayout& layout, Vector<const float> flat);

// Why training stops at step number `step` (from 1). tensor: of the gradient, or "". skipped: the
// policy was to skip.
Error nonfinite_step(std::int64_t step, const StepOutcome& outcome, const std::string& tensor,
                     bool skipped);

}  // namespace longstride
