// The whole network on the GPU, forward and backward, against the same network in float64 on the
// CPU.
#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <limits>
#include <random>
#include <string>
#include <vector>

#include "as_good_as.h"
#include "device/gpu_test_util.h"
#include "model/cuda/training_pass_cuda.h"
#include "model/parameters.h"
#include "model/training_pass.h"
#include "tensor/bf16.h"
#include "tensor/fp16.h"

namespace longstride {
namespace {

class TrainingPassGpu : public test::GpuTest {};

struct Case {
  ModelConfig model;
  std::int64_t batch = 2;
  std::vector<float> weights;
  std::vector<std::uint8_t> tokens;
  double scale = 0;
};

Case make_case(std::vector<std::string> attention, double dropout = 0, std::int64_t heads = 2,
               std::int64_t qk = 64, std::int64_t width = 128, std::int64_t context = 301,
               std::int64_t layers = 3) {
  Case c;
  c.model.layers = layers;
  c.model.width = width;
  c.model.heads = heads;
  c.model.qk_width = qk;
  c.model.ff_width = 2 * width;
  c.model.context = context;
  c.model.attention = std::move(attention);
  c.model.dropout = dropout;
  std::mt19937 rng(1);
  std::normal_distribution<float> normal;
  const ParameterLayout layout(c.model);
  c.weights.resize(static_cast<std::size_t>(layout.extent));
  for (const auto& p : layout.tensors) {
    const float deviation = p.deviation > 0 ? static_cast<float>(p.deviation) : 0.05f;
    for (std::int64_t e = 0; e < p.size; ++e)
      c.weights[static_cast<std::size_t>(p.offset + e)] =
          static_cast<float>(p.constant) + deviation * normal(rng);
  }
  c.tokens.resize(static_cast<std::size_t>(c.batch * context));
  for (auto& t : c.tokens) t = static_cast<std::uint8_t>(rng());
  c.scale = 1.0 / static_cast<double>(c.batch * context);
  return c;
}

struct Result {
  double nats = 0;
  std::vector<double> gradient;
};

constexpr std::uint64_t kSeed = 5, kStep = 7;

template <class T>
Result on_cpu(const Case& c, bool in_bf16) {
  TrainingPass<T> pass(c.model, c.batch, false, in_bf16);
  const std::vector<T> weights(c.weights.begin(), c.weights.end());
  std::vector<T> gradient(weights.size());
  const Vector<const T> w{weights.data(), std::ssize(weights)};
  Result r;
  r.nats = pass.run(w, c.tokens.data(), c.scale, {kSeed, kStep, 0},
                    {gradient.data(), std::ssize(gradient)});
  r.gradient.assign(gradient.begin(), gradient.end());
  return r;
}

template <class A>
Result on_gpu(const Case& c, const Recompute& again, std::int64_t micro) {
  device::StreamOwner stream;
  DeviceTrainingPass<A> pass(c.model, micro, {.again = again, .adds_up = micro < c.batch});
  const auto weights = test::to_device(c.weights);
  const auto tokens = test::to_device(c.tokens);
  const auto step = test::to_device(std::vector<std::int64_t>{static_cast<std::int64_t>(kStep)});
  // All must be overwritten, or set to zero where no tensor is (padding).
  const Vector<float> gradient = pass.gradients();
  const std::vector<float> poison(static_cast<std::size_t>(gradient.size),
                                  std::numeric_limits<float>::quiet_NaN());
  const std::int64_t bytes = gradient.size * static_cast<std::int64_t>(sizeof(float));
  device::copy(stream.stream, gradient.data, poison.data(), bytes);
  device::synchronize(stream.stream);
  pass.begin(stream.stream, weights.vector());
  for (std::int64_t first = 0; first < c.batch; first += micro)
    pass.run(stream.stream, tokens.data() + first * c.model.context, {kSeed, step.data(), first},
             static_cast<float>(c.scale));
  pass.end(stream.stream);
  Result r;
  std::vector<float> host(poison.size());
  device::copy(stream.stream, &r.nats, pass.nats(), sizeof(double));
  device::copy(stream.stream, host.data(), gradient.data, bytes);
  device::synchronize(stream.stream);
  r.gradient.assign(host.begin(), host.end());
  return r;
}

const std::vector<std::vector<std::string>> kPatterns = {
    {"dense"},
    {"local(16), column(16)"},
    {"local(16) + column(16)"},
    {"fixed(32, 8)"},
    {"column(20)", "local(20)", "row(30) + previous_row(30)"},
    {"global(5) + local(9), random(2, 7, 32) + local(4)"},
};

std::string name(const Case& c) { return c.model.attention[0]; }

TEST_F(TrainingPassGpu, FloatIsThatOfFloat64) {
  for (const auto& pattern : kPatterns)
    for (const double dropout : {0.0, 0.25}) {
      const Case c = make_case(pattern, dropout);
      const Result want = on_cpu<double>(c, false), got = on_gpu<float>(c, {}, c.batch);
      SCOPED_TRACE(name(c));
      EXPECT_NEAR(got.nats, want.nats, 1e-6 * want.nats);
      EXPECT_LE(test::relative_l2(got.gradient, want.gradient), 2e-6);
    }
}

TEST_F(TrainingPassGpu, HalfPrecisionIsAsGoodAsThePlainFormulaInIt) {
  for (const auto& pattern : kPatterns) {
    const Case c = make_case(pattern, 0.25);
    const Result want = on_cpu<double>(c, false), plain = on_cpu<float>(c, true);
    const double bound = 2 * test::relative_l2(plain.gradient, want.gradient);
    SCOPED_TRACE(name(c));
    const Result brain = on_gpu<bf16>(c, {}, c.batch);
    EXPECT_LE(test::relative_l2(brain.gradient, want.gradient), bound);
    EXPECT_NEAR(brain.nats, want.nats, 1e-3 * want.nats);
    const Result half = on_gpu<fp16>(c, {}, c.batch);  // three more bits
    EXPECT_LE(test::relative_l2(half.gradient, want.gradient), bound);
  }
}

// Odd widths and heads: what tensor cores cannot read in place takes a slower path.
TEST_F(TrainingPassGpu, OddShapes) {
  for (const auto& [heads, qk, width, context] : {std::array<std::int64_t, 4>{1, 20, 20, 77},
                                                  {3, 30, 33, 65},
                                                  {2, 96, 192, 129},
                                                  {1, 256, 256, 40}}) {
    const Case c =
        make_case({"local(9)", "column(7)", "fixed(10, 5)"}, 0.1, heads, qk, width, context);
    const Result want = on_cpu<double>(c, false), got = on_gpu<float>(c, {}, c.batch);
    SCOPED_TRACE(text(heads, " heads, qk ", qk, ", width ", width));
    EXPECT_LE(test::relative_l2(got.gradient, want.gradient), 2e-6);
    const Result plain = on_cpu<float>(c, true), brain = on_gpu<bf16>(c, {}, c.batch);
    EXPECT_LE(test::relative_l2(brain.gradient, want.gradient),
              2 * test::relative_l2(plain.gradient, want.gradient));
  }
}

// Widths of the models; products of the first end in the residual and the norm on Hopper.
TEST_F(TrainingPassGpu, WidthsOfTheModels) {
  for (const std::int64_t width : {256, 512}) {
    const Case c = make_case({"local(16)", "column(16)"}, 0.25, 4, 128, width, 151);
    const Result want = on_cpu<double>(c, false), plain = on_cpu<float>(c, true);
    const double bound = 2 * test::relative_l2(plain.gradient, want.gradient);
    SCOPED_TRACE(width);
    const Result brain = on_gpu<bf16>(c, {}, c.batch), half = on_gpu<fp16>(c, {}, c.batch);
    EXPECT_LE(test::relative_l2(brain.gradient, want.gradient), bound);
    EXPECT_NEAR(brain.nats, want.nats, 1e-3 * want.nats);
    EXPECT_LE(test::relative_l2(half.gradient, want.gradient), bound);
  }
}

// What is not kept is made again with the same bits, on whatever path: widths that tensor cores
// read in place and others, padding between tensors, one micro-batch and two.
TEST_F(TrainingPassGpu, SameBitsWhateverIsRunAgain) {
  const Case even = make_case({"local(16) + column(16)", "fixed(32, 8)"}, 0.25, 2, 64, 128, 301, 5);
  const Case odd = make_case({"local(9)", "column(7)"}, 0.1, 3, 30, 33, 65, 5);
  const Case wide = make_case({"local(9)", "column(7)"}, 0.1, 4, 128, 256, 65, 5);
  for (const Case* c : {&even, &odd, &wide}) {
    for (const std::int64_t micro : {2, 1}) {
      const Result whole = on_gpu<bf16>(*c, {}, micro);
      for (const Recompute& again :
           {Recompute{.segment = 1}, Recompute{.segment = 2}, Recompute{.segment = 5},
            Recompute{.qkv = 3}, Recompute{.qkv = 5}, Recompute{.qkv = 5, .inner = 2},
            Recompute{.inner = 3}, Recompute{.qkv = 5, .inner = 5}, Recompute{1, 1, 1},
            Recompute{2, 2, 2}, Recompute{3, 3, 2}, Recompute{3, 1, 0}, Recompute{4, 4, 4}}) {
        const Result got = on_gpu<bf16>(*c, again, micro);
        EXPECT_EQ(got.nats, whole.nats);
        EXPECT_EQ(std::memcmp(got.gradient.data(), whole.gradient.data(),
                              whole.gradient.size() * sizeof(double)),
                  0)
            << text("width ", c->model.width, ", micro-batch ", micro, ": segments of ",
                    again.segment, ", qkv ", again.qkv, ", inner ", again.inner);
      }
    }
  }
}

TEST_F(TrainingPassGpu, MicroBatchesAddUp) {
  const Case c = make_case({"fixed(32, 8)"}, 0.25);
  const Result whole = on_gpu<float>(c, {}, 2), parts = on_gpu<float>(c, {}, 1);
  EXPECT_NEAR(parts.nats, whole.nats, 1e-6 * whole.nats);
  EXPECT_LE(test::relative_l2(parts.gradient, whole.gradient), 1e-6);
}

TEST_F(TrainingPassGpu, ScoresAreThoseOfShorterSequencesToo) {
  const Case c = make_case({"local(16) + column(16)", "fixed(32, 8)"});
  device::StreamOwner stream;
  DeviceTrainingPass<float> pass(c.model, c.batch, {.trains = false});
  const auto weights = test::to_device(c.weights);
  const auto tokens = test::to_device(c.tokens);
  pass.begin(stream.stream, weights.vector());
  for (const std::int64_t length : {std::int64_t{1}, std::int64_t{77}, c.model.context}) {
    const auto nats = test::poisoned_device<float>(length);
    pass.score(stream.stream, tokens.data(), 1, length, nats.vector());
    device::synchronize(stream.stream);
    double got = 0;
    for (const float n : test::to_host(nats)) got += n;
    // Position tables are those of the whole context: the loss of a prefix.
    const auto whole = test::poisoned_device<float>(c.model.context);
    pass.score(stream.stream, tokens.data(), 1, c.model.context, whole.vector());
    device::synchronize(stream.stream);
    const auto all = test::to_host(whole);
    double want = 0;
    for (std::int64_t i = 0; i < length; ++i) want += all[static_cast<std::size_t>(i)];
    EXPECT_NEAR(got, want, 1e-5 * want) << length;
  }
}

}  // namespace
}  // namespace longstride
