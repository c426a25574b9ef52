// Cross-entropy on the GPU against float64, and the sum of losses.
#include <gtest/gtest.h>

#include "as_good_as.h"
#include "ops/cross_entropy/cross_entropy_cuda.h"
#include "ops/cross_entropy/cross_entropy_ref.h"
#include "ops/gpu_rows_test_util.h"

namespace longstride::ops::cuda {

namespace {

using test::as_good_as, test::DeviceRows, test::random_bytes, test::random_normal;
using test::relative_l2, test::rounded, test::same_bits, test::view;

constexpr std::int64_t kSymbols = 256;

struct Case {
  std::int64_t R;
  double size;  // of the logits
  friend void PrintTo(const Case& c, std::ostream* out) {
    *out << c.R << " rows, logits of size " << c.size;
  }
};

template <class Real>
struct Formula {
  Formula(const std::vector<float>& x, const std::vector<std::uint8_t>& targets, double scale)
      : logits(x.begin(), x.end()), nats(targets.size()), dlogits(x.size()) {
    const auto rows = static_cast<std::int64_t>(targets.size());
    ref::cross_entropy(
        ops::CrossEntropy<Real>{.logits = matrix<const Real>(logits.data(), rows, kSymbols),
                                .targets = targets.data(),
                                .nats = view(nats),
                                .dlogits = matrix(dlogits.data(), rows, kSymbols),
                                .scale = static_cast<Real>(scale)});
  }
  std::vector<Real> logits, nats, dlogits;
};

class CrossEntropyGpuTest : public test::GpuTest, public testing::WithParamInterface<Case> {
 protected:
  template <class A>
  void matches() {
    const auto [R, size] = GetParam();
    const auto x = random_normal<float>(R * kSymbols, 1, size);
    const auto targets = random_bytes(R, 2);
    const DeviceRows<float> logits(R, kSymbols, x);
    const DeviceRows<A> dlogits(R, kSymbols);
    const auto symbols = test::to_device(targets);
    const auto nats = test::poisoned_device<float>(R), only = test::poisoned_device<float>(R);
    const auto loss_scale = test::to_device(std::vector<double>{1024.0});
    cross_entropy<A>(nullptr, {.logits = logits.matrix(),
                               .targets = symbols.data(),
                               .nats = nats.vector(),
                               .dlogits = dlogits.matrix(),
                               .scale = 0.125f,
                               .device_scale = loss_scale.data()});
    cross_entropy<A>(nullptr, {.logits = logits.matrix(),
                               .targets = symbols.data(),
                               .nats = only.vector(),
                               .dlogits = {}});
    const Formula<double> truth(x, targets, 128);
    const Formula<float> plain(x, targets, 128);
    const auto got = dlogits.values(), losses = test::to_host(nats);
    EXPECT_TRUE(as_good_as<float>(plain.nats, losses, truth.nats));
    EXPECT_TRUE(same_bits(losses, test::to_host(only)));
    EXPECT_TRUE(as_good_as<float>(rounded<A>(plain.dlogits), got, truth.dlogits));
    if (sizeof(A) < 4) return;
    EXPECT_LE(relative_l2(losses, truth.nats), 2e-6);
    EXPECT_LE(relative_l2(got, truth.dlogits), 2e-6);
  }
};

TEST_P(CrossEntropyGpuTest, Float) { matches<float>(); }
TEST_P(CrossEntropyGpuTest, Bf16) { matches<bf16>(); }
TEST_P(CrossEntropyGpuTest, Fp16) { matches<fp16>(); }

INSTANTIATE_TEST_SUITE_P(Shapes, CrossEntropyGpuTest,
                         testing::Values(Case{1, 1}, Case{7, 0}, Case{9, 5}, Case{800, 1},
                                         Case{33, 30}));

class CrossEntropyGpu : public test::GpuTest {};

TEST_F(CrossEntropyGpu, OverTheLogits) {
  const std::int64_t R = 21;
  const auto x = random_normal<float>(R * kSymbols, 1);
  const DeviceRows<float> logits(R, kSymbols, x), dlogits(R, kSymbols);
  const auto symbols = test::to_device(random_bytes(R, 2));
  const auto nats = test::poisoned_device<float>(R);
  for (const auto& to : {dlogits.matrix(), logits.matrix()})
    cross_entropy<float>(nullptr, {.logits = logits.matrix(),
                                   .targets = symbols.data(),
                                   .nats = nats.vector(),
                                   .dlogits = to});
  EXPECT_TRUE(same_bits(logits.values(), dlogits.values()));
}

// Far logits leave no NaN, and a NaN among the logits is seen in the loss.
TEST_F(CrossEntropyGpu, ExtremeLogits) {
  std::vector<float> x(3 * kSymbols, -1e30f);
  x[5] = 1e30f;
  x[static_cast<std::size_t>(kSymbols) + 255] = 80;
  x[static_cast<std::size_t>(2 * kSymbols) + 100] = std::nanf("");
  const DeviceRows<float> logits(3, kSymbols, x), dlogits(3, kSymbols);
  const auto symbols = test::to_device(std::vector<std::uint8_t>{5, 255, 7});
  const auto nats = test::poisoned_device<float>(3);
  cross_entropy<float>(nullptr, {.logits = logits.matrix(),
                                 .targets = symbols.data(),
                                 .nats = nats.vector(),
                                 .dlogits = dlogits.matrix()});
  const auto losses = test::to_host(nats), slopes = dlogits.values();
  EXPECT_EQ(losses[0], 0.0f);
  EXPECT_EQ(losses[1], 0.0f);
  EXPECT_TRUE(std::isnan(losses[2]));
  for (std::size_t i = 0; i < 2 * static_cast<std::size_t>(kSymbols); ++i) EXPECT_EQ(slopes[i], 0);
}

TEST_F(CrossEntropyGpu, BeyondTwoToThe31) {
  constexpr std::int64_t kRows = (std::int64_t{1} << 23) + 3;
  if (!test::device_has(7 * kRows * kSymbols)) GTEST_SKIP() << "the card is too small";
  const device::DeviceBuffer<float> logits(kRows * kSymbols), nats(kRows);
  const device::DeviceBuffer<bf16> dlogits(kRows * kSymbols);
  const device::DeviceBuffer<std::uint8_t> targets(kRows);
  const DeviceRows<float> last(1, kSymbols, random_normal<float>(kSymbols, 1));
  const DeviceRows<bf16> gradient(1, kSymbols), far(1, kSymbols);
  const auto loss = test::poisoned_device<float>(1);
  const Matrix<float> all = logits.matrix(kRows, kSymbols);
  device::copy(nullptr, all.row(kRows - 1), last.matrix().data, kSymbols * 4);
  cross_entropy<bf16>(nullptr, {.logits = all,
                                .targets = targets.data(),
                                .nats = nats.vector(),
                                .dlogits = dlogits.matrix(kRows, kSymbols)});
  cross_entropy<bf16>(nullptr, {.logits = last.matrix(),
                                .targets = targets.data(),
                                .nats = loss.vector(),
                                .dlogits = gradient.matrix()});
  device::copy(nullptr, far.matrix().data, dlogits.data() + (kRows - 1) * kSymbols, kSymbols * 2);
  EXPECT_TRUE(same_bits(far.values(), gradient.values()));
  const auto losses = test::to_host(nats);
  EXPECT_EQ(losses.back(), test::to_host(loss)[0]);
  EXPECT_NEAR(losses[static_cast<std::size_t>(kRows - 2)], std::log(256.0), 1e-6);
}

TEST_F(CrossEntropyGpu, SumIsExactInDoubleAndAdds) {
  for (const std::int64_t size : {0, 1, 255, 4096, 4097, 49152, 1048577, 3000001}) {
    const auto x = random_normal<float>(size, 3, 1, 3);
    const auto values = test::to_device(x);
    const device::DeviceBuffer<double> partial(sum_partials());
    const auto total = test::to_device(std::vector<double>{1000, 1000});
    long double exact = 0;
    for (const float v : x) exact += static_cast<long double>(v);
    sum(nullptr, values.vector(), partial.data(), total.data(), false);
    sum(nullptr, values.vector(), partial.data(), total.data() + 1, true);
    const auto got = test::to_host(total);
    const auto want = static_cast<double>(exact);
    EXPECT_NEAR(got[0], want, 1e-13 * want) << size;
    EXPECT_EQ(got[1], 1000 + got[0]) << size;
  }
}

TEST_F(CrossEntropyGpu, RejectsWrongInputs) {
  const DeviceRows<float> narrow(2, 255), wide(2, kSymbols, test::Gaps{4, 0});
  const device::DeviceBuffer<float> nats(2);
  EXPECT_EQ(test::error_of([&] {
              cross_entropy<float>(nullptr, {.logits = narrow.matrix(), .nats = nats.vector()});
            }),
            "cross_entropy: logits is 2x255, want 2x256");
  EXPECT_EQ(test::error_of([&] {
              cross_entropy<float>(nullptr, {.logits = wide.matrix(), .nats = nats.vector()});
            }),
            "cross_entropy: logits has a row stride of 260, want 256");
}

}  // namespace

}  // namespace longstride::ops::cuda
