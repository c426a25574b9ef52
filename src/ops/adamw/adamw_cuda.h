// The end of a training step on the GPU, without the host: norm of the gradient, the guard against
// non-finite numbers, clip, AdamW, moving average, loss scale. Formulas in adamw.h.
//
//   g = grad / loss_scale     finite: loss and norm are     clip as in adamw.h
//   not finite: nothing changes but the counts and the scale
//   loss scale (fp16): x growth after a good step, halved after a bad one, >= floor. While it can
//   be halved and the loss is finite, a gradient that is not is an overflow: the step is skipped
//   whatever the policy for non-finite numbers is
// The step that halts changes nothing but `halted`, nats, norm and was_skipped; those after it
// change nothing.
#pragma once

#include <cstdint>
#include <vector>

#include "device/cuda.h"
#include "ops/adamw/adamw.h"
#include "tensor/tensor.h"

namespace longstride::ops::cuda {

// Of one step, set by the host before it (in device memory when the kernels run).
struct StepInput {
  std::int64_t step = 0;  // number of the step, from 0
  double lr = 0;
};

// Lives on the device from step to step; the host reads a copy.
struct StepState {
  std::int64_t updates = 0;  // made so far: t of AdamW is updates + 1
  std::int64_t skipped = 0, skipped_in_a_row = 0;
  double loss_scale = 1;
  std::int64_t halted =
      0;  // 1: a step was not finite and the policy says stop; nothing changes after
  // Of the last step:
  double nats = 0, norm = 0;  // norm before clipping, of the unscaled gradient
  std::int64_t was_skipped = 0;
};

struct UpdateConfig {
  double beta1 = 0.9, beta2 = 0.999, eps = 1e-8, decay = 0, ema = 0, clip = 0;  // clip 0: off
  bool stop_on_nonfinite = true;
  std::int64_t most_skipped_in_a_row = 10;  // one more halts, also where the policy is to skip
  bool scales_loss = false;
  double scale_growth = 1.0003466337, scale_floor = 1024;
};

class Update {
 public:
  // extent: a multiple of 16. decayed: ascending, disjoint ranges, multiples of 16 (padding between
  // tensors may be inside).
  Update(std::int64_t extent, const std::vector<DecayRange>& decayed, const UpdateConfig& config);
  ~Update();
  Update(const Update&) = delete;
  Update& operator=(const Update&) = delete;
  static std::int64_t bytes(std::int64_t extent);

  // weights, m, v, average (or empty), grad: [extent]. nats: the batch's sum of losses, one double.
  // Two kernels and a tiny one: norm in fixed pieces; decide; update.
  void run(device::Stream stream, Vector<float> weights, Vector<float> m, Vector<float> v,
           Vector<float> average, Vector<const float> grad, const double* nats,
           const StepInput* input, StepState* state) const;

  struct State;

 private:
  State* state_;
};

}  // namespace longstride::ops::cuda
