#include "files/tensorboard.h"

#include <gtest/gtest.h>

#include <bit>
#include <chrono>

#include "files/fault.h"
#include "temporary_folder.h"

namespace longstride {

namespace {

using test::get;
using test::TemporaryFolder;
using test::throws;

std::uint64_t number(const std::string& bytes, std::size_t at, std::size_t size) {
  std::uint64_t value = 0;
  for (std::size_t i = size; i-- > 0;)
    value = value << 8 | static_cast<unsigned char>(bytes[at + i]);
  return value;
}

// The payloads of a record file, every check sum compared.
std::vector<std::string> records(const std::string& file) {
  std::vector<std::string> payloads;
  for (std::size_t at = 0; at < file.size();) {
    const std::uint64_t size = number(file, at, 8);
    EXPECT_EQ(number(file, at + 8, 4), masked_crc32c(file.substr(at, 8)));
    payloads.push_back(file.substr(at + 12, size));
    EXPECT_EQ(number(file, at + 12 + size, 4), masked_crc32c(payloads.back()));
    at += 16 + size;
  }
  return payloads;
}

std::vector<std::filesystem::path> event_files(const std::filesystem::path& folder) {
  std::vector<std::filesystem::path> files;
  for (const auto& entry : std::filesystem::directory_iterator(folder))
    files.push_back(entry.path());
  return files;
}

TEST(Crc32c, PublishedValues) {
  EXPECT_EQ(crc32c(""), 0u);
  EXPECT_EQ(crc32c("123456789"), 0xe3069283u);
  EXPECT_EQ(masked_crc32c("123456789"), 0xc78ab0e5u);  // of TensorBoard's own reader
  EXPECT_EQ(crc32c(std::string(32, '\0')), 0x8a9136aau);
  EXPECT_EQ(crc32c(std::string(32, '\xff')), 0x62a8ab43u);
}

TEST(TensorBoard, GoldenEvents) {
  const TemporaryFolder folder;
  {
    TensorBoardWriter writer(folder.path(), 300);
    writer.add(301, {{"loss", 1.5}, {"lr", -0.25}});
  }
  const auto files = event_files(folder.path());
  ASSERT_EQ(files.size(), 1u);
  EXPECT_TRUE(files[0].filename().native().starts_with("events.out.tfevents."));
  const auto payloads = records(get(files[0]));
  ASSERT_EQ(payloads.size(), 3u);
  // wall_time stands in front of each: key 0x09 and a double, now.
  for (const std::string& payload : payloads) {
    EXPECT_EQ(payload[0], '\x09');
    const std::chrono::duration<double> now = std::chrono::system_clock::now().time_since_epoch();
    EXPECT_NEAR(std::bit_cast<double>(number(payload, 1, 8)), now.count(), 600);
  }
  using namespace std::string_literals;
  EXPECT_EQ(payloads[0].substr(9), "\x10\0\x1a\x0d"s + "brain.Event:2");
  EXPECT_EQ(payloads[1].substr(9), "\x10\xac\x02\x3a\x02\x08\x01"s);
  EXPECT_EQ(payloads[2].substr(9), "\x10\xad\x02\x2a\x18\x0a\x0b\x0a\x04loss\x15\0\0\xc0\x3f"s +
                                       "\x0a\x09\x0a\x02lr\x15\0\0\x80\xbe"s);
}

TEST(TensorBoard, TwoWritersInOneSecondKeepTheirFiles) {
  const TemporaryFolder folder;
  for (int i = 0; i < 3; ++i) TensorBoardWriter(folder.path(), i);
  EXPECT_EQ(event_files(folder.path()).size(), 3u);
}

TEST(TensorBoard, FailuresAreErrors) {
  const TemporaryFolder folder;
  TensorBoardWriter writer(folder.path(), 0);
  set_fault("enospc@1");
  EXPECT_TRUE(throws(Fault::environment, {"events.out.tfevents", "errno 28"}, [&] {
    writer.add(1, {{"a", 1}});
  }));
  set_fault("");
  EXPECT_TRUE(
      throws(Fault::environment, {"errno 2"}, [&] { TensorBoardWriter(folder / "none", 0); }));
}

}  // namespace

}  // namespace longstride
