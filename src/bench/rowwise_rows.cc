// Every operation besides matrix products and attention. All are bound by memory: once with arrays
// of 2,048 rows, which caches hold between calls, and once with arrays larger than most caches,
// where the rate beside the copy bandwidth means something.
#include <vector>

#include "bench/timed_rows.h"
#include "ops/activation/activation.h"
#include "ops/adamw/adamw.h"
#include "ops/convert/convert.h"
#include "ops/cross_entropy/cross_entropy.h"
#include "ops/embedding/embedding.h"
#include "ops/layer_norm/layer_norm.h"
#include "ops/residual/residual.h"

namespace longstride::bench {

namespace {

constexpr std::int64_t kWidth = 256, kWide = 4 * kWidth, kSymbols = 256;
constexpr std::int64_t kLength = 1024;  // positions of a sequence
constexpr double kFloat = sizeof(float);

std::vector<std::uint8_t> symbols(std::int64_t count) {
  std::vector<std::uint8_t> out(static_cast<std::size_t>(count));
  for (std::size_t i = 0; i < out.size(); ++i) out[i] = static_cast<std::uint8_t>(i * 131 >> 3);
  return out;
}

// The operations that exist in both precisions; R rows.
template <class A>
class MixedRows {
 public:
  MixedRows(BenchReport& report, std::int64_t rows)
      : report_(report), R_(rows), shape_(text(rows, "x", kWidth)), values_(real(rows * kWidth)) {}

  void run() {
    layer_norm();
    activation();
    residual();
    cross_entropy();
  }

 private:
  static constexpr double kSize = sizeof(A);

  void layer_norm() {
    const Buffer<A> y(R_ * kWidth);
    add_row<A>(report_, "layer_norm", shape_, 8 * values_, (kFloat + kSize) * values_, [&] {
      ops::layer_norm(ops::LayerNorm<float, A>{.x = narrow_.matrix(R_, kWidth),
                                               .gain = gain_.vector(),
                                               .bias = gain_.vector(),
                                               .y = y.matrix(R_, kWidth),
                                               .mean = mean_.vector(),
                                               .rstd = rstd_.vector()});
    });
  }

  void activation() {
    const auto x = random_values_as<A>(R_ * kWide, 11);
    const Buffer<A> y(R_ * kWide);
    const double values = real(R_ * kWide);
    const std::string shape = text(R_, "x", kWide);
    add_row<A>(report_, "activation", shape, 4 * values, 2 * kSize * values,
               [&] { ops::activation(ops::Activation<A>{.x = x.vector(), .y = y.vector()}); });
    add_row<A>(report_, "activation backward", shape, 8 * values, 3 * kSize * values, [&] {
      ops::activation_backward(
          ops::ActivationBackward<A>{.x = x.vector(), .dy = x.vector(), .dx = y.vector()});
    });
  }

  void residual() {
    const auto x = random_values_as<A>(R_ * kWidth, 12);
    const Buffer<float> y(R_ * kWidth);
    const Buffer<A> dx(R_ * kWidth);
    for (const double p : {0.0, 0.1}) {
      const std::string with = p > 0 ? " with dropout" : "";
      const ops::Dropout dropout{.p = p, .seed = 1};
      add_row<A>(report_, "residual" + with, shape_, values_, (2 * kFloat + kSize) * values_, [&] {
        ops::residual(ops::Residual<float, A>{.h = narrow_.matrix(R_, kWidth),
                                              .x = x.matrix(R_, kWidth),
                                              .y = y.matrix(R_, kWidth),
                                              .dropout = dropout});
      });
      add_row<A>(
          report_, "residual backward" + with, shape_, values_, (kFloat + kSize) * values_, [&] {
            ops::residual_backward(ops::ResidualBackward<float, A>{
                .dy = narrow_.matrix(R_, kWidth), .dx = dx.matrix(R_, kWidth), .dropout = dropout});
          });
    }
  }

  void cross_entropy() {
    const auto targets = symbols(R_);
    const auto logits = random_values(R_ * kSymbols, 7);
    const Buffer<float> nats(R_);
    const Buffer<A> dlogits(R_ * kSymbols);
    const double values = real(R_ * kSymbols);
    add_row<A>(
        report_, "cross_entropy", text(R_, "x", kSymbols), 5 * values, (kFloat + kSize) * values,
        [&] {
          ops::cross_entropy(ops::CrossEntropy<float, A>{.logits = logits.matrix(R_, kSymbols),
                                                         .targets = targets.data(),
                                                         .nats = nats.vector(),
                                                         .dlogits = dlogits.matrix(R_, kSymbols)});
        });
  }

  BenchReport& report_;
  const std::int64_t R_;
  const std::string shape_;  // of the narrow arrays
  const double values_;
  Buffer<float> narrow_ = random_values(R_ * kWidth, 10), gain_ = random_values(kWidth, 3);
  Buffer<float> mean_{R_}, rstd_{R_};
};

void layer_norm_backward(BenchReport& report, std::int64_t R) {
  const auto x = random_values(R * kWidth, 10), gain = random_values(kWidth, 3),
             statistics = random_values(R, 4);
  const Buffer<float> dx(R * kWidth), dgain(kWidth), dbias(kWidth);
  const double values = real(R * kWidth);
  add_row<float>(
      report, "layer_norm backward", text(R, "x", kWidth), 14 * values, 4 * kFloat * values, [&] {
        ops::layer_norm_backward(ops::LayerNormBackward<float>{.x = x.matrix(R, kWidth),
                                                               .gain = gain.vector(),
                                                               .mean = statistics.vector(),
                                                               .rstd = statistics.vector(),
                                                               .dy = x.matrix(R, kWidth),
                                                               .dx = dx.matrix(R, kWidth),
                                                               .dgain = dgain.vector(),
                                                               .dbias = dbias.vector()});
      });
}

void embedding(BenchReport& report, std::int64_t R) {
  const std::int64_t batch = R / kLength;
  const auto tokens = symbols(R);
  const auto bytes = random_values(kSymbols * kWidth, 5);
  const auto axis = random_values(32 * kWidth, 6);  // 32 rows of 32: kLength positions
  const auto dy = random_values(R * kWidth, 10);
  const Buffer<float> start(kWidth), y(R * kWidth), dbytes(kSymbols * kWidth), dstart(kWidth);
  const Buffer<float> drows(32 * kWidth), dcolumns(32 * kWidth);
  const std::string shape = text(batch, "x", kLength, "x", kWidth);
  const double values = real(R * kWidth);
  add_row<float>(report, "embedding", shape, 2 * values, kFloat * values, [&] {
    ops::embedding(ops::Embedding<float>{.tokens = tokens.data(),
                                         .batch = batch,
                                         .length = kLength,
                                         .bytes = bytes.matrix(kSymbols, kWidth),
                                         .axes = {axis.matrix(32, kWidth), axis.matrix(32, kWidth)},
                                         .start = start.vector(),
                                         .y = y.matrix(R, kWidth)});
  });
  add_row<float>(report, "embedding backward", shape, 3 * values, kFloat * values, [&] {
    ops::embedding_backward(ops::EmbeddingBackward<float>{
        .tokens = tokens.data(),
        .batch = batch,
        .length = kLength,
        .dy = dy.matrix(R, kWidth),
        .dbytes = dbytes.matrix(kSymbols, kWidth),
        .daxes = {drows.matrix(32, kWidth), dcolumns.matrix(32, kWidth)},
        .dstart = dstart.vector()});
  });
}

void convert(BenchReport& report, std::int64_t size) {
  const auto from = random_values(size, 13);
  const Buffer<bf16> to(size);
  add_row<bf16>(report, "convert", text(size), 0, (kFloat + sizeof(bf16)) * real(size),
                [&] { ops::convert(from.vector(), to.vector()); });
}

void adamw(BenchReport& report, std::int64_t size) {
  const auto weights = random_values(size, 8), grad = random_values(size, 9);
  const Buffer<float> m(size), v(size);
  const std::vector<ops::DecayRange> decayed = {{0, size}};
  const ops::AdamW<float> op{.weights = weights.vector(),
                             .m = m.vector(),
                             .v = v.vector(),
                             .average = {},
                             .grad = grad.vector(),
                             .decayed = &decayed,
                             .lr = 1e-6,
                             .decay = 0.01};
  double norm = 0;
  add_row<float>(report, "global_norm", text(size), 2 * real(size), kFloat * real(size),
                 [&] { norm += ops::global_norm(grad.vector()); });
  add_row<float>(report, "adamw", text(size), 15 * real(size), 7 * kFloat * real(size),
                 [&] { ops::adamw(op); });
}

}  // namespace

void add_rowwise_rows(BenchReport& report) {
  for (const std::int64_t rows : {2048, 32768}) {
    MixedRows<float>(report, rows).run();
    MixedRows<bf16>(report, rows).run();
    layer_norm_backward(report, rows);
    embedding(report, rows);
  }
  for (const std::int64_t parameters : {std::int64_t{1} << 17, std::int64_t{1} << 23}) {
    adamw(report, parameters);
    convert(report, parameters);
  }
}

}  // namespace longstride::bench
