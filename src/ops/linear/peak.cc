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

template <class A>
double flops_a_second(const Shape& shape) {
  constexpr int kRuns = 3;  // the first one warms up
  const Buffer<A> x(shape.rows * shape.in), w(shape.in * shape.out), y(shape.rows * shape.out);
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

}  // namespace

double measure_peak_flops() { return flops_a_second<float>({8192, 256, 1024}); }

double measure_peak_bf16_flops() { return flops_a_second<bf16>({8192, 256, 1024}); }

}  // namespace longstride::ops
