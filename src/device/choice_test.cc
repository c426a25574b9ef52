#include "device/choice.h"

#include <gtest/gtest.h>

#include "device/device.h"
#include "longstride/error.h"

namespace longstride::device {
namespace {

TEST(Choice, AutoTakesWhatIsThere) {
  EXPECT_FALSE(on_cuda("eval", "cpu"));
  EXPECT_EQ(name_of(false), "cpu");
  const bool card = on_cuda("eval", "auto");
  if (devices().empty()) {
    EXPECT_FALSE(card);
  }
  try {
    EXPECT_TRUE(on_cuda("eval", "cuda"));
    EXPECT_TRUE(card);
    EXPECT_EQ(name_of(true), text("cuda (", devices()[0].name, ")"));
  } catch (const Error& error) {
    EXPECT_FALSE(card);
    EXPECT_EQ(error.fault, built() ? Fault::device : Fault::not_supported);
    EXPECT_TRUE(std::string(error.what()).starts_with("eval: ")) << error.what();
    EXPECT_TRUE(std::string(error.what()).find(", want ") != std::string::npos) << error.what();
  }
}

TEST(Choice, AWordThatIsNoDeviceIsRefused) {
  try {
    on_cuda("sample", "gpu");
    FAIL();
  } catch (const Error& error) {
    EXPECT_EQ(error.fault, Fault::invalid_argument);
    EXPECT_STREQ(error.what(), "sample: device is \"gpu\", want auto, cpu or cuda");
  }
}

TEST(Choice, Bf16IsForTheGpu) {
  const auto fault = [](const char* precision, bool cuda) {
    try {
      check_precision("eval", precision, cuda);
    } catch (const Error& error) {
      return text(exit_code(error.fault), " ", error.what());
    }
    return std::string();
  };
  EXPECT_EQ(fault("f32", false), "");
  EXPECT_EQ(fault("bf16", true), "");
  EXPECT_EQ(fault("bf16", false), "2 eval: precision bf16 on the CPU, want f32, or --device cuda");
  EXPECT_EQ(fault("fp8", true), "2 eval: precision is \"fp8\", want f32 or bf16");
}

}  // namespace
}  // namespace longstride::device
