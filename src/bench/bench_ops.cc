// Every operation besides attention, at the shapes of one layer of a small model and with tensors
// larger than most caches: rates beside the copy bandwidth mean something only then.
#include <vector>

#include "bench/measure.h"
#include "longstride/error.h"
#include "ops/activation/activation.h"
#include "ops/adamw/adamw.h"
#include "ops/cross_entropy/cross_entropy.h"
#include "ops/embedding/embedding.h"
#include "ops/layer_norm/layer_norm.h"
#include "ops/linear/linear.h"
#include "ops/residual/residual.h"

namespace longstride {

namespace {

constexpr std::int64_t kRows = 32768;  // batch 32 of 1024 positions: arrays beyond most caches
constexpr std::int64_t kBatch = 32, kLength = kRows / kBatch;
constexpr std::int64_t kWidth = 256, kWide = 4 * kWidth, kSymbols = 256;

double f(std::int64_t n) { return static_cast<double>(n); }

class OpsBench {
 public:
  BenchReport run() {
    bench::measure_peaks(report_);
    linear();
    layer_norm();
    activation();
    residual();
    embedding();
    cross_entropy();
    adamw();
    bench::measure_peaks(report_);
    return std::move(report_);
  }

 private:
  // `values`: float32 values read and written at least.
  void row(const std::string& series, const std::string& shape, double flops, double values,
           const std::function<void()>& work) {
    BenchRow r;
    r.series = series;
    r.shape = shape;
    r.flops = flops;
    r.bytes = values * sizeof(float);
    r.seconds = bench::fastest(work, kBudget);
    report_.rows.push_back(r);
  }

  void linear() {
    const auto weight = bench::random_values(kWidth * kWide, 1);
    const auto bias = bench::random_values(kWide, 2);
    const Buffer<float> dweight(kWidth * kWide), dbias(kWide), dx(kRows * kWidth);
    const std::string shape = text(kRows, "x", kWidth, " by ", kWidth, "x", kWide);
    const double flops = 2.0 * f(kRows) * f(kWidth) * f(kWide);
    const double values = f(kRows) * f(kWidth + kWide) + f(kWidth) * f(kWide);
    const ops::Linear<float> op{.x = narrow_.matrix(kRows, kWidth),
                                .weight = weight.matrix(kWidth, kWide),
                                .bias = bias.vector(),
                                .y = wide_out_.matrix(kRows, kWide)};
    row("linear", shape, flops, values, [&] { ops::linear_forward(op); });
    row("linear, independent rows", shape, flops, values, [&] { ops::linear_rows(op); });
    row("linear backward", shape, 2 * flops, 2 * values, [&] {
      ops::linear_backward({.x = op.x,
                            .weight = op.weight,
                            .dy = wide_.matrix(kRows, kWide),
                            .dx = dx.matrix(kRows, kWidth),
                            .dweight = dweight.matrix(kWidth, kWide),
                            .dbias = dbias.vector()});
    });
  }

  void layer_norm() {
    const auto gain = bench::random_values(kWidth, 3);
    const Buffer<float> bias(kWidth), mean(kRows), rstd(kRows), dgain(kWidth), dbias(kWidth);
    const std::string shape = text(kRows, "x", kWidth);
    const double values = f(kRows) * f(kWidth);
    row("layer_norm", shape, 8 * values, 2 * values, [&] {
      ops::layer_norm({.x = narrow_.matrix(kRows, kWidth),
                       .gain = gain.vector(),
                       .bias = bias.vector(),
                       .y = narrow_out_.matrix(kRows, kWidth),
                       .mean = mean.vector(),
                       .rstd = rstd.vector()});
    });
    row("layer_norm backward", shape, 14 * values, 4 * values, [&] {
      ops::layer_norm_backward({.x = narrow_.matrix(kRows, kWidth),
                                .gain = gain.vector(),
                                .mean = mean.vector(),
                                .rstd = rstd.vector(),
                                .dy = narrow_.matrix(kRows, kWidth),
                                .dx = narrow_out_.matrix(kRows, kWidth),
                                .dgain = dgain.vector(),
                                .dbias = dbias.vector()});
    });
  }

  void activation() {
    const double values = f(kRows) * f(kWide);
    const std::string shape = text(kRows, "x", kWide);
    row("activation", shape, 4 * values, 2 * values,
        [&] { ops::activation({.x = wide_.vector(), .y = wide_out_.vector()}); });
    row("activation backward", shape, 8 * values, 3 * values, [&] {
      ops::activation_backward(
          {.x = wide_.vector(), .dy = wide_.vector(), .dx = wide_out_.vector()});
    });
  }

  void residual() {
    const double values = f(kRows) * f(kWidth);
    for (const double p : {0.0, 0.1})
      row(p > 0 ? "residual with dropout" : "residual", text(kRows, "x", kWidth), values,
          3 * values, [&] {
            ops::residual({.h = narrow_.matrix(kRows, kWidth),
                           .x = narrow_.matrix(kRows, kWidth),
                           .y = narrow_out_.matrix(kRows, kWidth),
                           .dropout = {.p = p, .seed = 1}});
          });
  }

  void embedding() {
    const std::vector<std::uint8_t> tokens = symbols();
    const auto bytes = bench::random_values(kSymbols * kWidth, 5);
    const auto axis = bench::random_values(32 * kWidth, 6);  // 32 rows of 32: kLength positions
    const Buffer<float> start(kWidth);
    row("embedding", text(kBatch, "x", kLength, "x", kWidth), 2 * f(kRows) * f(kWidth),
        f(kRows) * f(kWidth), [&] {
          ops::embedding({.tokens = tokens.data(),
                          .batch = kBatch,
                          .length = kLength,
                          .bytes = bytes.matrix(kSymbols, kWidth),
                          .axes = {axis.matrix(32, kWidth), axis.matrix(32, kWidth)},
                          .start = start.vector(),
                          .y = narrow_out_.matrix(kRows, kWidth)});
        });
  }

  void cross_entropy() {
    const std::vector<std::uint8_t> targets = symbols();
    const auto logits = bench::random_values(kRows * kSymbols, 7);
    const Buffer<float> nats(kRows), dlogits(kRows * kSymbols);
    const double values = f(kRows) * f(kSymbols);
    row("cross_entropy", text(kRows, "x", kSymbols), 5 * values, 2 * values, [&] {
      ops::cross_entropy({.logits = logits.matrix(kRows, kSymbols),
                          .targets = targets.data(),
                          .nats = nats.vector(),
                          .dlogits = dlogits.matrix(kRows, kSymbols)});
    });
  }

  void adamw() {
    constexpr std::int64_t kParameters = std::int64_t{1} << 23;
    const auto weights = bench::random_values(kParameters, 8);
    const auto grad = bench::random_values(kParameters, 9);
    const Buffer<float> m(kParameters), v(kParameters);
    const std::vector<ops::DecayRange> decayed = {{0, kParameters}};
    row("global_norm", text(kParameters), 2 * f(kParameters), f(kParameters),
        [&] { norm_ = ops::global_norm(grad.vector()); });
    row("adamw", text(kParameters), 15 * f(kParameters), 7 * f(kParameters), [&] {
      ops::adamw({.weights = weights.vector(),
                  .m = m.vector(),
                  .v = v.vector(),
                  .average = {},
                  .grad = grad.vector(),
                  .decayed = &decayed,
                  .lr = 1e-6,
                  .decay = 0.01});
    });
  }

  std::vector<std::uint8_t> symbols() const {
    std::vector<std::uint8_t> out(kRows);
    for (std::size_t i = 0; i < out.size(); ++i) out[i] = static_cast<std::uint8_t>(i * 131 >> 3);
    return out;
  }

  static constexpr double kBudget = 0.1;  // seconds a row
  BenchReport report_;
  Buffer<float> narrow_ = bench::random_values(kRows * kWidth, 10);
  Buffer<float> wide_ = bench::random_values(kRows * kWide, 11);
  Buffer<float> narrow_out_{kRows * kWidth}, wide_out_{kRows * kWide};
  double norm_ = 0;
};

}  // namespace

BenchReport bench_ops() { return OpsBench().run(); }

}  // namespace longstride
