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

// Bytes read and written a second over 128 MiB, more than caches hold, on all threads: the better
// of a copy (y = x) and an update in place (y += x, which need not fetch lines only to overwrite
// them).
double peak_bytes();

// Raises the peaks of the report to what is measured now. Called before and after the rows, so that
// a busy moment does not pass for the machine's limit.
void measure_peaks(BenchReport& report);

// Normal values; the same for the same (seed, size).
Buffer<float> random_values(std::int64_t size, std::uint64_t seed);

}  // namespace longstride::bench
