#include "model/run_state.h"

#include <gtest/gtest.h>

#include <cmath>
#include <nlohmann/json.hpp>
#include <vector>

#include "longstride/error.h"

namespace longstride {
namespace {

RunState example() {
  RunState s;
  s.step = 1200;
  s.seed = (std::uint64_t{1} << 63) - 1;
  s.config = "name = \"x\"\n";
  s.data = "abc123";
  s.metrics_bytes = 98765;
  s.best = BestValidation{1100, 0.1 + 0.2};
  s.skipped = 3;
  s.skipped_in_a_row = 1;
  s.bits = 1.0 / 3;
  s.device = "cuda";
  s.loss_scale = 65536.0 / 3;
  return s;
}

TEST(RunState, RoundTripsExactly) {
  const RunState s = example(), t = parse_run_state(to_json(s), "here");
  EXPECT_EQ(t.step, s.step);
  EXPECT_EQ(t.seed, s.seed);
  EXPECT_EQ(t.config, s.config);
  EXPECT_EQ(t.data, s.data);
  EXPECT_EQ(t.metrics_bytes, s.metrics_bytes);
  ASSERT_TRUE(t.best.has_value());
  EXPECT_EQ(t.best->step, s.best->step);
  EXPECT_EQ(t.best->bits, s.best->bits);
  EXPECT_EQ(t.skipped, s.skipped);
  EXPECT_EQ(t.skipped_in_a_row, s.skipped_in_a_row);
  EXPECT_EQ(t.bits, s.bits);
  EXPECT_EQ(t.device, s.device);
  EXPECT_EQ(t.loss_scale, s.loss_scale);
}

TEST(RunState, FilesOfBeforeTheGpuAreRead) {
  auto old = nlohmann::json::parse(to_json(example()));
  old.erase("device");
  old.erase("loss_scale");
  const RunState s = parse_run_state(old.dump(), "FILE");
  EXPECT_EQ(s.device, "cpu");
  EXPECT_EQ(s.loss_scale, 1);
}

TEST(RunState, KeepsWhatIsNotThere) {
  RunState s = example();
  s.best.reset();
  s.bits = std::nan("");
  const RunState t = parse_run_state(to_json(s), "here");
  EXPECT_FALSE(t.best.has_value());
  EXPECT_TRUE(std::isnan(t.bits));
}

TEST(RunState, EveryFieldIsRequired) {
  const auto whole = nlohmann::json::parse(to_json(example()));
  for (const auto& [key, value] : whole.items()) {
    auto mistyped = whole;
    mistyped[key] = nlohmann::json::array();
    std::vector<nlohmann::json> all = {mistyped};
    if (key != "device" && key != "loss_scale") {
      all.push_back(whole);
      all.back().erase(key);
    }
    for (const auto& broken : all) {
      try {
        parse_run_state(broken.dump(), "FILE");
        ADD_FAILURE() << "accepted: " << broken.dump();
      } catch (const Error& e) {
        EXPECT_EQ(e.fault, Fault::invalid_argument);
        EXPECT_NE(std::string(e.what()).find("FILE"), std::string::npos) << e.what();
        EXPECT_NE(std::string(e.what()).find(key), std::string::npos) << e.what();
      }
    }
  }
}

TEST(RunState, RefusesOtherFormatsAndNonsense) {
  auto other = nlohmann::json::parse(to_json(example()));
  other["format"] = 2;
  EXPECT_THROW(parse_run_state(other.dump(), "FILE"), Error);
  other["format"] = 1;
  other["step"] = -1;
  EXPECT_THROW(parse_run_state(other.dump(), "FILE"), Error);
  other["step"] = 1e300;
  EXPECT_THROW(parse_run_state(other.dump(), "FILE"), Error);
  for (const auto* bad : {"", "{", "[]", "null", "{\"format\":1}", "\xff\xfe"})
    EXPECT_THROW(parse_run_state(bad, "FILE"), Error) << bad;
}

}  // namespace
}  // namespace longstride
