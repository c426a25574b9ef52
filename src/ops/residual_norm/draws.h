// What the draws of dropout in kernels are made of; dropout.cuh makes them.
#pragma once

#include <cstdint>

#include "ops/residual/residual.h"

namespace longstride::ops::cuda {

struct Draws {
  std::uint32_t threshold = 0;  // a word below drops; 0: dropout is off
  float scale = 1;              // of what is kept
  std::uint32_t key0 = 0, key1 = 0, lane = 0;
  std::uint64_t step = 0;
  const std::int64_t* device_step = nullptr;  // where set: the step
  std::int64_t first = 0;                     // element index of row 0, column 0
};

Draws draws_of(const char* who, const Dropout& dropout, const std::int64_t* device_step,
               std::int64_t cols);

}  // namespace longstride::ops::cuda
