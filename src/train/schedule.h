// The learning rate of step s (from 0) of T, with w steps of warm-up:
//
//   s < w    lr (s + 1) / w
//   else     lr (f + (1 - f) (1 + cos(pi x)) / 2),   x = (s - w) / (T - w),   f = final_lr
//
// so that lr f is reached when step T would begin.
#pragma once

#include <cstdint>

#include "longstride/config.h"

namespace longstride {

double learning_rate(const TrainConfig& train, std::int64_t step);

}  // namespace longstride
