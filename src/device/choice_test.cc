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

}  // namespace
}  // namespace longstride::device
