#include "ops/linear/peak.h"

#include <algorithm>
#include <chrono>
#include <cstdint>

#include "ops/linear/linear.h"

namespace longstride::ops {

namespace {

struct Shape {
  std::int64_t rows, in, out;
};

// Values that differ: a processor multiplies zeros at a lower power, hence at a higher clock.
template <class A>
Buffer<A> filled(std::int64_t size) {
  Buffer<A> values(size);
  for (std::int64_t i = 0; i < size; ++i)
    values[i] = static_cast<A>(static_cast<float>(i % 251) - 125);
  return values;
}

template <class A>
double flops_a_second(const Shape& shape) {
  constexpr int kRuns = 3;  // the first one warms up
  const Buffer<A> x = filled<A>(shape.rows * shape.in), w = filled<A>(shape.in * shape.out);
  const Buffer<A> y(shape.rows * shape.out);
  const Linear<A> op{.x = x.matrix(shape.rows, shape.in),
                     .weight = w.matrix(shape.in, shape.out),
                     .bias = {},
                     .y = y.matrix(shape.rows, shape.out)};
  double best = 0;
  for (int run = 0; run < kRuns; ++run) {
    const auto start = std::chrono::steady_clock::now();
    linear_forward(op);
    const std::chrono::duration<double> took = std::chrono::steady_clock::now() - start;
    const double flops = 2.0 * static_cast<double>(shape.rows * shape.in * shape.out);
    best = std::max(best, flops / took.count());
  }
  return best;
}

template <class A>
double peak() {
  double best = 0;
  for (const Shape& shape : {Shape{8192, 256, 1024}, Shape{4096, 1024, 1024}})
    best = std::max(best, flops_a_second<A>(shape));
  return best;
}

}  // namespace

double measure_peak_flops() { return peak<float>(); }
double measure_peak_bf16_flops() { return peak<bf16>(); }

}  // namespace longstride::ops
