// Matrix products of a layer: training at 4,096 rows, decoding at one row.
#include "bench/timed_rows.h"
#include "ops/linear/linear.h"

namespace longstride::bench {

namespace {

constexpr std::int64_t kRows = 4096;

struct Shape {
  std::int64_t in, out;
};

// Projections, both halves of the feed-forward.
constexpr Shape kShapes[] = {{256, 256}, {256, 1024}, {1024, 256},
                             {512, 512}, {512, 2048}, {2048, 512}};

std::string name_of(std::int64_t rows, Shape s) {
  return text(rows, "x", s.in, " by ", s.in, "x", s.out);
}

// Bytes, each array once: x, W, y forward; x, W, dy, dx backward and dW read and written in float.
template <class A>
void training_rows(BenchReport& report, Shape s) {
  const auto x = random_values_as<A>(kRows * s.in, 1), w = random_values_as<A>(s.in * s.out, 2),
             dy = random_values_as<A>(kRows * s.out, 3);
  const auto bias = random_values(s.out, 4);
  const Buffer<A> y(kRows * s.out), dx(kRows * s.in);
  const Buffer<float> dweight(s.in * s.out), dbias(s.out);
  const double in = real(kRows * s.in), out = real(kRows * s.out), weights = real(s.in * s.out);
  const double flops = 2 * real(kRows) * weights, size = sizeof(A), sums = 2 * sizeof(float);
  const std::string name = name_of(kRows, s);

  const ops::Linear<A> forward{.x = x.matrix(kRows, s.in),
                               .weight = w.matrix(s.in, s.out),
                               .bias = bias.vector(),
                               .y = y.matrix(kRows, s.out)};
  add_row<A>(report, "linear", name, flops, size * (in + weights + out),
             [&] { ops::linear_forward(forward); });
  ops::LinearBackward<A> backward{.x = forward.x,
                                  .weight = forward.weight,
                                  .dy = dy.matrix(kRows, s.out),
                                  .dx = dx.matrix(kRows, s.in),
                                  .dweight = dweight.matrix(s.in, s.out),
                                  .dbias = dbias.vector()};
  add_row<A>(report, "linear backward, dx and dW", name, 2 * flops,
             size * (2 * in + weights + out) + sums * weights,
             [&] { ops::linear_backward(backward); });
  backward.dx = {};
  add_row<A>(report, "linear backward, dW", name, flops, size * (in + out) + sums * weights,
             [&] { ops::linear_backward(backward); });
}

void decoding_row(BenchReport& report, Shape s) {
  constexpr std::int64_t rows = 1;
  const auto x = random_values(rows * s.in, 1), w = random_values(s.in * s.out, 2),
             bias = random_values(s.out, 4);
  const Buffer<float> y(rows * s.out);
  const double values = real(rows * s.in + s.in * s.out + rows * s.out);
  const ops::Linear<float> op{.x = x.matrix(rows, s.in),
                              .weight = w.matrix(s.in, s.out),
                              .bias = bias.vector(),
                              .y = y.matrix(rows, s.out)};
  add_row<float>(report, "linear", name_of(rows, s), 2 * real(rows * s.in * s.out),
                 sizeof(float) * values, [&] { ops::linear_forward(op); });
}

}  // namespace

void add_linear_rows(BenchReport& report) {
  for (const Shape& s : kShapes) training_rows<float>(report, s);
  for (const Shape& s : kShapes) training_rows<bf16>(report, s);
  for (const Shape& s : kShapes) decoding_row(report, s);
}

}  // namespace longstride::bench
