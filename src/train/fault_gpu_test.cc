// A card that fails or is full while a run trains on it.
#include <gtest/gtest.h>

#include <cstdlib>
#include <cstring>
#include <optional>

#include "device/gpu_test_util.h"
#include "files/checkpoint.h"
#include "longstride/error.h"
#include "longstride/train.h"
#include "ops/cross_entropy/cross_entropy_cuda.h"
#include "train/memory.h"
#include "train/training_fixture.h"

namespace longstride {
namespace {

namespace fs = std::filesystem;

// A kernel of ours reads where no memory is.
void fault() {
  const device::StreamOwner own;
  const device::DeviceBuffer<double> partial(ops::cuda::sum_partials()), out(1);
  const auto* nowhere = reinterpret_cast<const float*>(std::uintptr_t{4096});
  ops::cuda::sum(own.stream, {nowhere, 1 << 20}, partial.data(), out.data(), false);
  device::synchronize(own.stream);
}

// What a fault leaves of CUDA ends with its process, so it happens in one of its own: gtest starts
// the program again, with the folder of the test in the environment.
class DeviceFault : public testing::Test {
 protected:
  void SetUp() override {
    if (device::devices().empty()) GTEST_SKIP() << "no CUDA device: " << device::why_none();
    GTEST_FLAG_SET(death_test_style, "threadsafe");
    config_ = test::small_config();
    config_.train.precision = "f32";
    config_.train.checkpoint_every = 5;
    const char* given = std::getenv(kFolder);
    if (given != nullptr) {
      folder_ = given;
      return;
    }
    folder_ = own_.emplace().path();
    const std::vector<std::uint8_t> bytes = test::some_data(4000);
    test::put(folder_ / "data", {reinterpret_cast<const char*>(bytes.data()), bytes.size()});
    setenv(kFolder, folder_.c_str(), 1);
  }
  void TearDown() override { unsetenv(kFolder); }

  TrainOptions on(const std::string& device, const std::string& run) const {
    TrainOptions options;
    options.config = config_;
    options.data = folder_ / "data";
    options.run = folder_ / run;
    options.device = device;
    return options;
  }

  // Ends the process as the program would: with the line and the code of what was thrown. A copy of
  // the run goes on on the CPU before, in the process whose card has failed.
  [[noreturn]] void train_with(const std::function<void()>& after_step_seven) const {
    TrainObserver observer;
    observer.on_step = [&](const StepReport& r) {
      if (r.step == 7) after_step_seven();
    };
    try {
      train(on("cuda", "run"), observer);
    } catch (const Error& e) {
      fs::copy(folder_ / "run", folder_ / "on the cpu", fs::copy_options::recursive);
      const TrainResult end = train(on("cpu", "on the cpu"), {});
      std::fprintf(stderr, "%s\nthen %d on the cpu\n", e.what(), static_cast<int>(end.step));
      std::exit(exit_code(e.fault));
    }
    std::exit(0);
  }

  static constexpr const char* kFolder = "LONGSTRIDE_TEST_FOLDER";
  std::optional<test::TemporaryFolder> own_;
  fs::path folder_;
  Config config_;
};

struct Read : test::TrainingFixture {
  using TrainingFixture::tensors;
};

TEST_F(DeviceFault, EndsTrainingAndTheRunGoesOnFromItsLastCheckpoint) {
  EXPECT_EXIT(train_with([] {
                try {
                  fault();
                } catch (const Error&) {  // not told by who made it
                }
              }),
              testing::ExitedWithCode(5),
              "^train: step [89]: cuda: .*: an illegal memory access was encountered; "
              "LONGSTRIDE_CUDA_SYNC=1 names the kernel\nthen 12 on the cpu\n");
  const auto newest = newest_checkpoint(folder_ / "run", {});
  ASSERT_TRUE(newest.has_value());
  EXPECT_EQ(newest->step, 5);
  const TrainResult got = train(on("cuda", "run"), {}), want = train(on("cuda", "through"), {});
  EXPECT_EQ(got.step, 12);
  EXPECT_EQ(got.bits, want.bits);
  const auto a = Read::tensors(got.checkpoint, config_),
             b = Read::tensors(want.checkpoint, config_);
  ASSERT_EQ(a.size(), b.size());
  EXPECT_EQ(std::memcmp(a.data(), b.data(), a.size() * sizeof(float)), 0);
}

TEST_F(DeviceFault, NamesTheKernelWhereEachIsWaitedFor) {
  EXPECT_EXIT(train_with([] {
                device::set_synchronous(true);
                fault();
              }),
              testing::ExitedWithCode(5),
              "^cuda: sum of 1048576: an illegal memory access was encountered\n");
}

// Leaves so many bytes of the card free, or a little less: nothing else can use it meanwhile.
std::vector<device::DeviceBuffer<std::uint8_t>> occupy(std::int64_t leave) {
  std::vector<device::DeviceBuffer<std::uint8_t>> taken;
  constexpr std::int64_t kPiece = std::int64_t{2} << 20;
  for (;;) {
    const std::int64_t more = device::devices().at(0).free - leave;
    if (more <= 0) return taken;
    taken.emplace_back((more + kPiece - 1) / kPiece * kPiece);
  }
}

class FullCard : public test::TrainingFixture {
 protected:
  void SetUp() override {
    if (device::devices().empty()) GTEST_SKIP() << "no CUDA device: " << device::why_none();
    config_ = test::small_config();
    config_.model.layers = 12;
    config_.model.width = 256;
    config_.model.context = 2048;
    config_.train.precision = "bf16";
    config_.train.batch = 16;
    config_.train.recompute = "off";
    config_.train.steps = 6;
  }

  TrainOptions on_cuda(const std::string& run) const {
    TrainOptions out = options(config_, run);
    out.device = "cuda";
    return out;
  }

  // Of the whole batch at once without recomputation: what is planned, and the reserve besides.
  std::int64_t needed() const {
    const Config whole = test::at_once(config_);
    const StepMemory memory = cuda_memory();
    const MemoryPlan plan = plan_memory(whole, ParameterLayout(whole.model), memory);
    return plan.total() + device::devices().at(0).free - memory.available;
  }

  Config config_;
};

TEST_F(FullCard, TakesFewerSequencesAtOnceAndKeepsToThem) {
  std::vector<std::string> warnings;
  std::vector<std::int64_t> planned;
  TrainObserver observer;
  observer.on_plan = [&](const MemoryPlan& p) { planned.push_back(p.micro_batch); };
  observer.on_warning = [&](const std::string& line) { warnings.push_back(line); };
  TrainOptions first = on_cuda("run");
  first.stop_at = 3;
  {
    const auto taken = occupy(needed() * 3 / 4);
    train(first, observer);
  }
  const TrainResult end = train(on_cuda("run"), observer);
  train(on_cuda("free"), observer);
  EXPECT_EQ(planned, (std::vector<std::int64_t>{8, 8, 16}));
  EXPECT_TRUE(warnings.empty());
  config_.train.micro_batch = 8;
  const TrainResult want = train(on_cuda("through"), {});
  EXPECT_EQ(end.bits, want.bits);
  EXPECT_EQ(tensors(end.checkpoint, config_), tensors(want.checkpoint, config_));
}

TEST_F(FullCard, TellsWhatIsPlannedFreeAndWouldFit) {
  config_.train.micro_batch = 16;
  const std::string card = device::devices().at(0).name;
  const std::initializer_list<std::string_view> parts = {
      "train: ",    "GiB of memory of ", card,
      " planned, ", " GiB free; ",       "train.micro_batch=8 is the largest that fits"};
  std::vector<device::DeviceBuffer<std::uint8_t>> taken;
  TrainObserver observer;  // another program is quicker
  observer.on_plan = [&](const MemoryPlan&) { taken = occupy(needed() * 3 / 4); };
  EXPECT_TRUE(test::throws(Fault::environment, parts, [&] { train(on_cuda("late"), observer); }));
  EXPECT_FALSE(taken.empty());
  EXPECT_TRUE(test::throws(Fault::environment, parts, [&] { train(on_cuda("early"), {}); }));
  EXPECT_FALSE(fs::exists(run("early")));
  taken.clear();
  EXPECT_EQ(train(on_cuda("late"), {}).step, 6);
}

}  // namespace
}  // namespace longstride
