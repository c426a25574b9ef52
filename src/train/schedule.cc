#include "train/schedule.h"

#include <algorithm>
#include <cmath>
#include <numbers>

namespace longstride {

double learning_rate(const TrainConfig& t, std::int64_t step) {
  if (step < t.warmup) return t.lr * static_cast<double>(step + 1) / static_cast<double>(t.warmup);
  const std::int64_t decay = std::max<std::int64_t>(1, t.steps - t.warmup);
  const double x = std::min(1.0, static_cast<double>(step - t.warmup) / static_cast<double>(decay));
  return t.lr * (t.final_lr + (1 - t.final_lr) * 0.5 * (1 + std::cos(std::numbers::pi * x)));
}

}  // namespace longstride
