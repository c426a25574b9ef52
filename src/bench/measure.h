// Time of one call, and what this machine can do.
#pragma once

#include <cstdint>
#include <functional>

#include "longstride/runtime.h"
#include "tensor/bf16.h"
#include "tensor/tensor.h"

namespace longstride::bench {

// Seconds of the fastest of several calls, after one to warm up. Stops after about `budget` seconds
// (and two calls at least): the minimum is what the work costs, the rest is what else ran.
double fastest(const std::function<void()>& work, double budget = 0.5);

// Bytes read and written a second over 128 MiB, more than caches hold, on all threads: the better
// of a copy (y = x) and an update in place (y += x, which need not fetch lines only to overwrite
// them).
double peak_bytes();

// Raises the peaks of the report to what is measured now. Called before and after the rows, so that
// a busy moment does not pass for the machine's limit.
void measure_peaks(BenchReport& report);

// Normal values; the same for the same (seed, size).
Buffer<float> random_values(std::int64_t size, std::uint64_t seed);

// The same values in the precision A, float or bf16.
template <class A>
Buffer<A> random_values_as(std::int64_t size, std::uint64_t seed) {
  Buffer<float> values = random_values(size, seed);
  if constexpr (std::is_same_v<A, float>) {
    return values;
  } else {
    Buffer<A> narrow(size);
    for (std::int64_t i = 0; i < size; ++i) narrow[i] = A(values[i]);
    return narrow;
  }
}

}  // namespace longstride::bench
