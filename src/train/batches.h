// The bytes that a step learns from.
#pragma once

#include <algorithm>
#include <cstdint>

#include "data/dataset.h"
#include "longstride/config.h"

namespace longstride {

class Batches {
 public:
  // `data` is the whole byte sequence, `train` the span of it to learn from; `data` must outlive
  // this.
  Batches(const Config& config, const std::uint8_t* data, Span train)
      : data_(data),
        batch_(config.train.batch),
        context_(config.model.context),
        order_(train, config.model.context, config.train.seed) {}

  // Sequences [first, first + count) of step number `step`, from 0: tokens [count, context].
  void gather(std::int64_t step, std::int64_t first, std::int64_t count,
              std::uint8_t* tokens) const {
    for (std::int64_t b = 0; b < count; ++b)
      std::copy_n(data_ + order_.begin(step * batch_ + first + b), context_, tokens + b * context_);
  }

 private:
  const std::uint8_t* data_;
  std::int64_t batch_, context_;
  WindowOrder order_;
};

}  // namespace longstride
