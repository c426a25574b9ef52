#include "train/memory.h"

#include <gtest/gtest.h>

#include "eval/scorer.h"
#include "longstride/error.h"
#include "model/training_pass.h"
#include "train/training_fixture.h"

namespace longstride {
namespace {

TEST(MemoryPlan, CountsEveryArray) {
  Config config = test::small_config();
  const ParameterLayout layout(config.model);
  const std::int64_t array = layout.extent * 4;
  const MemoryPlan plan = plan_memory(config, layout, cpu_memory(std::int64_t{1} << 40));
  EXPECT_EQ(plan.parameters, layout.count);
  EXPECT_EQ(plan.weights + plan.gradients + plan.optimizer + plan.averages, 5 * array);
  EXPECT_EQ(plan.kept + plan.scratch, training_bytes(config.model, 4, false, false).total());
  const std::int64_t without = plan.total();
  config.train.validate_every = 10;
  EXPECT_EQ(plan_memory(config, layout, cpu_memory(std::int64_t{1} << 40)).total(),
            without + scorer_bytes(config.model));
  config.train.ema = 0;
  EXPECT_EQ(plan_memory(config, layout, cpu_memory(1)).averages, 0);
}

TEST(MemoryPlan, RecomputesWhereActivationsTakeMoreThanHalf) {
  Config config = test::small_config();
  const ParameterLayout layout(config.model);
  const std::int64_t whole = training_bytes(config.model, 4, false, false).total();
  EXPECT_FALSE(plan_memory(config, layout, cpu_memory(2 * whole + 1)).recompute);
  EXPECT_TRUE(plan_memory(config, layout, cpu_memory(2 * whole - 2)).recompute);
  config.train.recompute = "off";
  EXPECT_FALSE(plan_memory(config, layout, cpu_memory(1)).recompute);
  config.train.recompute = "on";
  EXPECT_TRUE(plan_memory(config, layout, cpu_memory(std::int64_t{1} << 40)).recompute);
}

// Of a device of its own: all of it may be filled, and the quickest way that fits is taken.
TEST(MemoryPlan, RunsNoMoreBlocksAgainThanADeviceMakesIt) {
  Config config = test::small_config();
  const ParameterLayout layout(config.model);
  StepMemory memory;
  memory.device = "a card";
  memory.shared = false;
  memory.bytes = [](const Config&, const Recompute& again) {
    return TrainingBytes{again.segment > 0 ? again.segment * 1000 : 12000 - again.qkv * 500, 500};
  };
  memory.ways = [](const ModelConfig&) {
    return std::vector<StepMemory::Way>{
        {{.qkv = 2}, 0.1}, {{.segment = 6}, 0.2}, {{.segment = 4}, 0.3}, {{.segment = 3}, 0.4}};
  };
  const std::int64_t arrays = 5 * layout.extent * 4;  // with averages
  const auto segment = [&](std::int64_t activations, const char* recompute) {
    config.train.recompute = recompute;
    memory.available = arrays + activations;
    return plan_memory(config, layout, memory).recompute.segment;
  };
  EXPECT_EQ(segment(12500, "auto"), 0);
  EXPECT_EQ(segment(12499, "auto"), 0);
  EXPECT_EQ(plan_memory(config, layout, memory).recompute.qkv, 2);
  EXPECT_EQ(plan_memory(config, layout, memory).recompute_time, 0.1);
  EXPECT_EQ(segment(11499, "auto"), 6);
  EXPECT_EQ(segment(6499, "auto"), 4);
  EXPECT_EQ(segment(4500, "auto"), 4);
  EXPECT_EQ(segment(4499, "auto"), 3);
  EXPECT_EQ(segment(0, "auto"), 3);
  EXPECT_EQ(segment(1 << 20, "on"), 3);
  EXPECT_EQ(segment(0, "off"), 0);
  const MemoryPlan plan = plan_memory(config, layout, memory);
  EXPECT_EQ(plan.device, "a card");
  try {
    require_fit(plan, config, layout, memory);
    ADD_FAILURE() << "no error";
  } catch (const Error& e) {
    EXPECT_NE(std::string(e.what()).find("of memory of a card planned"), std::string::npos);
  }
}

// 32 symbols are lost a pass: a time of 1 + 1 / micro_batch a symbol, 1.15 times that with half of
// the blocks run again.
TEST(MemoryPlan, TakesAsManyAtOnceAsFitWhereThatIsQuicker) {
  Config config = test::small_config();
  config.train.batch = 12;
  const ParameterLayout layout(config.model);
  StepMemory memory;
  memory.shared = false;
  memory.symbols_lost = 32;
  memory.bytes = [](const Config& c, const Recompute& again) {
    return TrainingBytes{c.train.micro_batch * (again ? 200 : 1000), 0};
  };
  memory.ways = [](const ModelConfig&) {
    return std::vector<StepMemory::Way>{{{.segment = 1}, 0.15}};
  };
  const std::int64_t arrays = 5 * layout.extent * 4;  // with averages
  using Choice = std::pair<std::int64_t, bool>;       // micro-batch, recompute
  const auto choice = [&](std::int64_t activations, std::int64_t recorded = 0) {
    memory.available = arrays + activations;
    const MemoryPlan plan = plan_memory(config, layout, memory, recorded);
    return Choice(plan.micro_batch, static_cast<bool>(plan.recompute));
  };
  EXPECT_EQ(choice(12000), Choice(12, false));
  EXPECT_EQ(choice(11999), Choice(6, false));
  EXPECT_EQ(choice(5999), Choice(4, false));  // 1.25; 12 with recomputation: 1.246, not 1 % less
  EXPECT_EQ(choice(3000), Choice(12, true));
  EXPECT_EQ(choice(2000), Choice(6, true));
  EXPECT_EQ(choice(0), Choice(1, true));  // which does not fit
  EXPECT_EQ(choice(12000, 4), Choice(4, false));
  EXPECT_EQ(choice(2000, 4), Choice(4, true));
  EXPECT_EQ(choice(2000, 12), Choice(6, true));
  EXPECT_EQ(choice(12000, 5), Choice(12, false));
  config.train.recompute = "off";
  EXPECT_EQ(choice(2000), Choice(2, false));
  config.train.micro_batch = 3;
  EXPECT_EQ(choice(2000), Choice(3, false));
  EXPECT_EQ(choice(12000, 4), Choice(3, false));
  config.train.micro_batch = 0;
  memory.symbols_lost = 0;
  EXPECT_EQ(choice(12000), Choice(1, false));
}

TEST(MemoryPlan, OfTheCpuLeavesHalfToOthers) {
  Config config = test::small_config();
  config.train.recompute = "on";
  const ParameterLayout layout(config.model);
  const std::int64_t two = training_bytes(config.model, 2, true, false).total();
  EXPECT_EQ(plan_memory(config, layout, cpu_memory(std::int64_t{1} << 40)).micro_batch, 4);
  EXPECT_EQ(plan_memory(config, layout, cpu_memory(2 * two + 1)).micro_batch, 2);
  EXPECT_EQ(plan_memory(config, layout, cpu_memory(2 * two - 2)).micro_batch, 1);
}

TEST(MemoryPlan, NamesTheLargestMicroBatchThatFits) {
  Config config = test::small_config();
  config.train.batch = config.train.micro_batch = 12;
  config.train.recompute = "on";
  const ParameterLayout layout(config.model);
  const auto needed = [&](std::int64_t micro) {
    Config smaller = config;
    smaller.train.micro_batch = micro;
    return plan_memory(smaller, layout, cpu_memory(0)).total();
  };
  const auto message = [&](std::int64_t available) -> std::string {
    try {
      const StepMemory memory = cpu_memory(available);
      require_fit(plan_memory(config, layout, memory), config, layout, memory);
      return "";
    } catch (const Error& e) {
      EXPECT_EQ(e.fault, Fault::environment);
      return e.what();
    }
  };
  EXPECT_EQ(message(needed(12)), "");
  EXPECT_NE(message(needed(12) - 1).find("train.micro_batch=6 "), std::string::npos);
  EXPECT_NE(message(needed(4)).find("train.micro_batch=4 "), std::string::npos);
  EXPECT_NE(message(needed(1)).find("train.micro_batch=1 "), std::string::npos);
  EXPECT_NE(message(needed(1) - 1).find("no train.micro_batch fits"), std::string::npos);
}

TEST(Memory, OfThisMachine) {
  EXPECT_GT(available_memory(), 0);
  EXPECT_GT(resident_memory(), 1 << 20);
}

}  // namespace
}  // namespace longstride
