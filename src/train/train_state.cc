#include "train/train_state.h"

#include <algorithm>
#include <cmath>
#include <cstring>

namespace longstride {

namespace {

bool finite(const float* x, std::int64_t n) {
  return std::all_of(x, x + n, [](float value) { return std::isfinite(value); });
}

}  // namespace

TrainState::TrainState(const Config& config, const ParameterLayout& layout)
    : weights(layout.extent), m(layout.extent), v(layout.extent) {
  initialise(layout, config.train.seed, weights.vector());
  if (config.train.ema == 0) return;
  average = Buffer<float>(layout.extent);
  std::memcpy(average.data(), weights.data(),
              static_cast<std::size_t>(layout.extent) * sizeof(float));
}

std::string first_nonfinite(const ParameterLayout& layout, Vector<const float> flat) {
  const auto bad =
      std::find_if(layout.tensors.begin(), layout.tensors.end(),
                   [&](const Parameter& t) { return !finite(flat.data + t.offset, t.size); });
  return bad == layout.tensors.end() ? "" : bad->name;
}

Error nonfinite_step(std::int64_t step, const StepOutcome& outcome, const std::string& tensor,
                     bool skipped) {
  return {Fault::numerics,
          text("train: step ", step, ": loss is ", outcome.bits, " bits, gradient norm ",
               outcome.grad_norm, tensor.empty() ? "" : ", first non-finite gradient in " + tensor,
               skipped ? text(", after ", kMostSkippedInARow, " skipped updates") : "",
               "; no update made")};
}

}  // namespace longstride
