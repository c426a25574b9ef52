// The end of a step on the GPU against the CPU: the same weights after many steps, and nothing
// touched where a step is not made.
#include <gtest/gtest.h>

#include <limits>

#include "as_good_as.h"
#include "ops/adamw/adamw_cuda.h"
#include "ops/gpu_rows_test_util.h"

namespace longstride::ops::cuda {

namespace {

using test::random_normal, test::relative_l2, test::same_bits, test::view;

constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();
constexpr float kInf = std::numeric_limits<float>::infinity();

// Weights, moments and average on the CPU, and the loop of training around them.
struct Host {
  Host(std::int64_t size, const std::vector<DecayRange>& ranges, const UpdateConfig& how)
      : n(size), decayed(ranges), config(how) {}

  void step(const std::vector<float>& grad, double lr, double scale) {
    const double norm = global_norm(view(grad)) / scale;
    const double clip = config.clip > 0 && norm > config.clip ? config.clip / norm : 1;
    adamw({.weights = view(weights),
           .m = view(m),
           .v = view(v),
           .average = config.ema > 0 ? view(average) : Vector<float>(),
           .grad = view(grad),
           .decayed = &decayed,
           .lr = lr,
           .beta1 = config.beta1,
           .beta2 = config.beta2,
           .eps = config.eps,
           .decay = config.decay,
           .ema = config.ema,
           .grad_scale = clip / scale,
           .step = ++updates});
  }

  std::int64_t n, updates = 0;
  std::vector<DecayRange> decayed;
  UpdateConfig config;
  std::vector<float> weights = random_normal<float>(n, 1), m = std::vector<float>(weights.size()),
                     v = m, average = random_normal<float>(n, 2);
};

// The same on the device.
struct Device {
  explicit Device(const Host& host)
      : weights(test::to_device(host.weights)),
        m(test::to_device(host.m)),
        v(test::to_device(host.v)),
        average(host.config.ema > 0 ? test::to_device(host.average)
                                    : device::DeviceBuffer<float>()),
        update(host.n, host.decayed, host.config) {}

  StepState step(const std::vector<float>& grad, double lr, double nats) {
    const auto gradient = test::to_device(grad);
    const auto loss = test::to_device(std::vector<double>{nats});
    const auto input = test::to_device(std::vector<StepInput>{{.step = 0, .lr = lr}});
    update.run(nullptr, weights.vector(), m.vector(), v.vector(), average.vector(),
               gradient.vector(), loss.data(), input.data(), state.data());
    return test::to_host(state)[0];
  }

  std::vector<float> all() const {
    std::vector<float> values;
    for (const auto* part : {&weights, &m, &v, &average})
      for (const float x : test::to_host(*part)) values.push_back(x);
    return values;
  }

  device::DeviceBuffer<float> weights, m, v, average;
  Update update;
  device::DeviceBuffer<StepState> state = test::to_device(std::vector<StepState>{StepState()});
};

UpdateConfig config_of(double ema, double clip) {
  return {.beta1 = 0.9, .beta2 = 0.98, .eps = 1e-6, .decay = 0.1, .ema = ema, .clip = clip};
}

class UpdateGpu : public test::GpuTest {
 protected:
  static void expect_same(const Host& host, const Device& device) {
    EXPECT_LE(relative_l2(test::to_host(device.weights), host.weights), 1e-6);
    EXPECT_LE(relative_l2(test::to_host(device.m), host.m), 1e-6);
    EXPECT_LE(relative_l2(test::to_host(device.v), host.v), 1e-6);
    if (host.config.ema == 0) return;
    EXPECT_LE(relative_l2(test::to_host(device.average), host.average), 1e-6);
  }
};

TEST_F(UpdateGpu, ManyStepsAreThoseOfTheCpu) {
  for (const std::int64_t n : {16, 528, 16384, 200016})
    for (const double ema : {0.0, 0.99})
      for (const double clip : {0.0, 1.0, 1e9}) {
        const std::int64_t unit = 16 * (n / 160);
        const std::vector<DecayRange> decayed =
            n == 16 ? std::vector<DecayRange>{{0, 16}}
                    : std::vector<DecayRange>{{0, 2 * unit}, {2 * unit, 3 * unit}, {5 * unit, n}};
        Host host(n, decayed, config_of(ema, clip));
        Device device(host);
        for (std::uint64_t s = 0; s < 20; ++s) {
          SCOPED_TRACE(text(n, " parameters, ema ", ema, ", clip ", clip, ", step ", s));
          const auto grad = random_normal<float>(n, 100 + s, s % 3 == 0 ? 1e-3 : 1);
          const double lr = 1e-2 / static_cast<double>(s + 1);
          const StepState got = device.step(grad, lr, 5.5 + static_cast<double>(s));
          host.step(grad, lr, 1);
          EXPECT_EQ(got.updates, static_cast<std::int64_t>(s) + 1);
          EXPECT_EQ(got.nats, 5.5 + static_cast<double>(s));
          EXPECT_NEAR(got.norm / global_norm(view(grad)), 1, 1e-12);
          EXPECT_EQ(got.skipped + got.skipped_in_a_row + got.was_skipped + got.halted, 0);
          EXPECT_EQ(got.loss_scale, 1);
          expect_same(host, device);
        }
      }
}

// Which elements decay: without a gradient nothing else moves them.
TEST_F(UpdateGpu, DecayOnlyWhereTold) {
  const std::int64_t n = 2048;
  Host host(n, {{16, 32}, {512, 1040}, {2032, 2048}}, config_of(0, 0));
  Device device(host);
  device.step(std::vector<float>(static_cast<std::size_t>(n)), 0.5, 1);
  const auto got = test::to_host(device.weights);
  for (std::int64_t i = 0; i < n; ++i) {
    const bool decays = (i >= 16 && i < 32) || (i >= 512 && i < 1040) || i >= 2032;
    const float w = host.weights[static_cast<std::size_t>(i)];
    EXPECT_FLOAT_EQ(got[static_cast<std::size_t>(i)], decays ? w - 0.05f * w : w) << i;
  }
}

// Where the gradient or the loss is not finite, every array keeps its bits.
TEST_F(UpdateGpu, SkipsAndCountsWithoutTouchingAnything) {
  const std::int64_t n = 40016;
  UpdateConfig config = config_of(0.99, 1);
  config.stop_on_nonfinite = false;
  config.most_skipped_in_a_row = 3;
  Host host(n, {{0, 160}}, config);
  Device device(host);
  const auto good = random_normal<float>(n, 7);
  const auto bad = [&](std::size_t at, float value) {
    auto grad = good;
    grad[at] = value;
    return grad;
  };
  device.step(good, 0.1, 1);
  host.step(good, 0.1, 1);
  const auto before = device.all();
  EXPECT_EQ(device.step(bad(0, kNaN), 0.1, 1).skipped, 1);
  EXPECT_EQ(device.step(bad(static_cast<std::size_t>(n) - 1, kInf), 0.1, 1).skipped, 2);
  const StepState third = device.step(good, 0.1, static_cast<double>(kNaN));
  EXPECT_EQ(third.skipped, 3);
  EXPECT_EQ(third.skipped_in_a_row, 3);
  EXPECT_EQ(third.was_skipped, 1);
  EXPECT_EQ(third.updates, 1);
  EXPECT_EQ(third.halted, 0);
  EXPECT_TRUE(std::isnan(third.nats));
  EXPECT_TRUE(same_bits(device.all(), before));

  const StepState fine = device.step(good, 0.2, 2);
  host.step(good, 0.2, 1);
  EXPECT_EQ(fine.updates, 2);
  EXPECT_EQ(fine.skipped, 3);
  EXPECT_EQ(fine.skipped_in_a_row + fine.was_skipped, 0);
  expect_same(host, device);

  const auto again = device.all();
  for (int i = 0; i < 3; ++i) EXPECT_EQ(device.step(bad(20000, -kInf), 0.1, 1).halted, 0);
  const StepState halt = device.step(bad(20000, -kInf), 0.1, 3);
  EXPECT_EQ(halt.halted, 1);
  EXPECT_EQ(halt.skipped, 6);
  EXPECT_EQ(halt.nats, 3);
  const StepState after = device.step(good, 0.1, 4);  // too late
  EXPECT_EQ(after.halted, 1);
  EXPECT_EQ(after.updates, 2);
  EXPECT_EQ(after.nats, 3);
  EXPECT_TRUE(same_bits(device.all(), again));
}

TEST_F(UpdateGpu, StopsAtOnceWhereThePolicyIsToStop) {
  Host host(160, {}, config_of(0.9, 1));
  Device device(host);
  const auto before = device.all();
  auto grad = random_normal<float>(160, 1);
  grad[100] = kNaN;
  const StepState got = device.step(grad, 0.1, 1);
  EXPECT_EQ(got.halted, 1);
  EXPECT_EQ(got.was_skipped, 1);
  EXPECT_EQ(got.skipped + got.updates, 0);
  EXPECT_TRUE(std::isnan(got.norm));
  EXPECT_TRUE(same_bits(device.all(), before));
}

TEST_F(UpdateGpu, LossScaleGrowsHalvesAndHasAFloor) {
  const std::int64_t n = 320;
  UpdateConfig config = config_of(0, 1);
  config.scales_loss = true;
  config.scale_growth = 1.25;
  config.scale_floor = 1024;
  Host host(n, {}, config);
  Device device(host);
  StepState state;
  state.loss_scale = 4096;
  device::copy(nullptr, device.state.data(), &state, sizeof(state));
  const auto base = random_normal<float>(n, 1);
  const auto scaled = [&](double scale) {
    auto grad = base;
    for (float& g : grad) g *= static_cast<float>(scale);
    return grad;
  };
  auto overflown = base;
  overflown[3] = kInf;

  StepState got = device.step(scaled(4096), 0.1, 1);
  host.step(base, 0.1, 1);
  EXPECT_EQ(got.loss_scale, 5120);
  EXPECT_NEAR(got.norm / global_norm(view(base)), 1, 1e-6);
  expect_same(host, device);
  const auto before = device.all();
  for (const double want : {2560.0, 1280.0, 1024.0}) {  // an overflow is skipped, not a halt
    got = device.step(overflown, 0.1, 1);
    EXPECT_EQ(got.loss_scale, want);
    EXPECT_EQ(got.halted, 0);
  }
  EXPECT_EQ(got.skipped, 3);
  EXPECT_TRUE(same_bits(device.all(), before));
  got = device.step(scaled(1024), 0.05, 1);
  host.step(base, 0.05, 1);
  EXPECT_EQ(got.loss_scale, 1280);
  EXPECT_EQ(got.updates, 2);
  expect_same(host, device);
  EXPECT_EQ(device.step(overflown, 0.1, 1).loss_scale, 1024);
  EXPECT_EQ(device.step(overflown, 0.1, 1).halted, 1);  // nothing left to halve
}

// A loss that is not finite is no overflow of the gradient.
TEST_F(UpdateGpu, LossThatIsNotFiniteStopsAlsoWhereTheLossIsScaled) {
  UpdateConfig config = config_of(0, 1);
  config.scales_loss = true;
  Host host(16, {}, config);
  Device device(host);
  StepState state;
  state.loss_scale = 65536;
  device::copy(nullptr, device.state.data(), &state, sizeof(state));
  EXPECT_EQ(device.step(host.weights, 0.1, static_cast<double>(kInf)).halted, 1);
}

TEST_F(UpdateGpu, NormOfHugeAndOfManyGradients) {
  Host host(1600000, {}, config_of(0, 0));
  Device device(host);
  auto grad = random_normal<float>(host.n, 3);
  EXPECT_NEAR(device.step(grad, 0, 1).norm / global_norm(view(grad)), 1, 1e-12);
  std::fill(grad.begin(), grad.end(), 3e38f);
  EXPECT_NEAR(device.step(grad, 0, 1).norm / global_norm(view(grad)), 1, 1e-12);
}

TEST_F(UpdateGpu, SameBitsEveryTime) {
  const auto run = [] {
    Host host(100000, {{0, 50000}}, config_of(0.99, 1));
    Device device(host);
    const auto grad = random_normal<float>(host.n, 3);
    StepState state;
    for (int s = 0; s < 10; ++s) state = device.step(grad, 0.01, 1);
    auto all = device.all();
    all.push_back(static_cast<float>(state.norm - static_cast<float>(state.norm)));
    return all;
  };
  const auto first = run();
  for (int i = 0; i < 4; ++i) EXPECT_TRUE(same_bits(run(), first));
}

TEST_F(UpdateGpu, BeyondTwoToThe31) {
  constexpr std::int64_t kSize = (std::int64_t{1} << 31) + 16;
  if (!test::device_has(17 * kSize)) GTEST_SKIP() << "the card is too small";
  Host host(16, {{0, 16}}, config_of(0, 0));
  const device::DeviceBuffer<float> weights(kSize), m(kSize), v(kSize), grad(kSize);
  device::copy(nullptr, weights.data() + kSize - 16, host.weights.data(), 64);
  device::copy(nullptr, grad.data() + kSize - 16, host.weights.data(), 64);
  const Update update(kSize, {{kSize - 16, kSize}}, host.config);
  const auto nats = test::to_device(std::vector<double>{1});
  const auto input = test::to_device(std::vector<StepInput>{{.step = 0, .lr = 0.1}});
  const auto state = test::to_device(std::vector<StepState>{StepState()});
  update.run(nullptr, weights.vector(), m.vector(), v.vector(), {}, grad.vector(), nats.data(),
             input.data(), state.data());
  const auto gradient = host.weights;
  host.step(gradient, 0.1, 1);
  const device::DeviceBuffer<float> last(16);
  device::copy(nullptr, last.data(), weights.data() + kSize - 16, 64);
  EXPECT_LE(relative_l2(test::to_host(last), host.weights), 1e-6);
  EXPECT_NEAR(test::to_host(state)[0].norm / global_norm(view(gradient)), 1, 1e-12);
}

TEST_F(UpdateGpu, RejectsWrongInputs) {
  EXPECT_EQ(test::error_of([] { Update(40, {}, {}); }),
            "update: 40 parameters, want a multiple of 16");
  EXPECT_EQ(test::error_of([] {
              Update(64, {{0, 32}, {16, 48}}, {});
            }),
            "update: decayed range [16, 48), want multiples of 16 ascending within [32, 64)");
  EXPECT_EQ(test::error_of([] {
              Update(64, {{0, 20}}, {});
            }),
            "update: decayed range [0, 20), want multiples of 16 ascending within [0, 64)");
}

}  // namespace

}  // namespace longstride::ops::cuda
