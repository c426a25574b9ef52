// Time of one call, and what this machine can do.
#pragma once

#include <cstdint>
#include <functional>

#include "longstride/runtime.h"
#include "tensor/tensor.h"

namespace longstride::bench {

// Seconds of the fastest of several calls, after one to warm up. Stops after about `budget` seconds
// (and two calls at least): the minimum is what the work costs, the rest is what else ran.
double fastest(const std::function<void()>& work, double budget = 0.5);

// The f32 matrix product of linear_forward, 1024 x 1024 x 1024: flops a second.
double peak_flops();

// A copy of 128 MiB, more than caches hold, on all threads: bytes read and written a second.
double peak_bytes();

// Raises the peaks of the report to what is measured now. Called before and after the rows, so that
// a busy moment does not pass for the machine's limit.
void measure_peaks(BenchReport& report);

// Normal values; the same for the same (seed, size).
Buffer<float> random_values(std::int64_t size, std::uint64_t seed);

}  // namespace longstride::bench
