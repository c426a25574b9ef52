#include "data/dataset.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <fstream>
#include <limits>
#include <map>
#include <set>

#include "data/sidecar.h"
#include "temporary_folder.h"

namespace longstride {

namespace {

using test::put;
using test::TemporaryFolder;
using test::throws;

std::string numbers(std::size_t n) {
  std::string bytes(n, '\0');
  for (std::size_t i = 0; i < n; ++i) bytes[i] = static_cast<char>(i * 7);
  return bytes;
}

TEST(Splits, AreShares) {
  const auto sizes = [](std::int64_t n) {
    const auto s = default_splits(n);
    EXPECT_EQ(s[0].begin, 0);
    EXPECT_EQ(s[0].end, s[1].begin);
    EXPECT_EQ(s[1].end, s[2].begin);
    EXPECT_EQ(s[2].end, n);
    return std::array{s[0].size(), s[1].size(), s[2].size()};
  };
  EXPECT_EQ(sizes(100), (std::array<std::int64_t, 3>{90, 5, 5}));
  EXPECT_EQ(sizes(100'000'000), (std::array<std::int64_t, 3>{90'000'000, 5'000'000, 5'000'000}));
  EXPECT_EQ(sizes(1), (std::array<std::int64_t, 3>{0, 0, 1}));
  EXPECT_EQ(sizes(39), (std::array<std::int64_t, 3>{35, 2, 2}));
  for (std::int64_t n = 0; n < 2000; ++n) {
    const auto s = default_splits(n);
    EXPECT_EQ(s[0].end, n * 90 / 100) << n;
    EXPECT_EQ(s[1].end, n * 95 / 100) << n;
  }
  EXPECT_GT(sizes(std::numeric_limits<std::int64_t>::max())[0], 0);
}

TEST(Dataset, RawFile) {
  const TemporaryFolder folder;
  put(folder / "raw", numbers(1000));
  const Dataset data(folder / "raw");
  EXPECT_EQ(data.size(), 1000);
  EXPECT_EQ(data.data()[3], 21);
  EXPECT_EQ(data.split("train").size(), 900);
  EXPECT_EQ(data.split("valid").begin, 900);
  EXPECT_EQ(data.split("test").end, 1000);
  EXPECT_EQ(data.split("all").size(), 1000);
  EXPECT_TRUE(throws(Fault::invalid_argument, {"'foo'", "train, valid, test or all"},
                     [&] { data.split("foo"); }));
}

TEST(Dataset, FilesThatCannotBeOne) {
  const TemporaryFolder folder;
  put(folder / "empty", "");
  const auto bad = [&](const std::string& name, const char* why) {
    return throws(Fault::invalid_argument, {(folder / name).native(), why},
                  [&] { Dataset{folder / name}; });
  };
  EXPECT_TRUE(bad("empty", "it is empty"));
  EXPECT_TRUE(bad("none", "No such file"));
  EXPECT_TRUE(bad("", "it is a folder"));
}

TEST(Dataset, FingerprintSeesSizeHeadMiddleAndTail) {
  const TemporaryFolder folder;
  const auto fingerprint = [&](const std::string& bytes) {
    put(folder / "f", bytes);
    return Dataset(folder / "f").fingerprint();
  };
  const std::string bytes = numbers(1'000'000);
  std::set<std::string> seen = {fingerprint(bytes), fingerprint(bytes.substr(1)),
                                fingerprint(bytes.substr(0, 999'999)), fingerprint("x")};
  for (const std::size_t at : {0, 500'000, 999'999}) {
    std::string changed = bytes;
    changed[at] = static_cast<char>(changed[at] + 1);
    seen.insert(fingerprint(changed));
  }
  EXPECT_EQ(seen.size(), 7u);
  EXPECT_EQ(fingerprint(bytes), fingerprint(bytes));
}

Sidecar sidecar_of(const std::string& bytes) {
  return {.kind = "bytes",
          .bytes = static_cast<std::int64_t>(bytes.size()),
          .splits = {Span{0, 10}, Span{10, 60}, Span{70, 100}},
          .hash = xxh128_hex(bytes.data(), bytes.size()),
          .sources = {{"a \"b\"", 60}, {"c", 40}}};
}

TEST(Sidecar, IsReadBackAndRulesTheSplits) {
  const TemporaryFolder folder;
  const std::string bytes = numbers(100);
  put(folder / "f", bytes);
  EXPECT_FALSE(read_sidecar(folder / "f"));
  put(folder / "f.json", to_json(sidecar_of(bytes)));
  const auto read = read_sidecar(folder / "f");
  ASSERT_TRUE(read);
  EXPECT_EQ(to_json(*read), to_json(sidecar_of(bytes)));
  EXPECT_EQ(read->sources[0].path, "a \"b\"");
  const Dataset data(folder / "f");
  EXPECT_EQ(data.split("train").size(), 10);
  EXPECT_EQ(data.split("test").begin, 70);
  EXPECT_EQ(data.split("all").size(), 100);
}

TEST(Sidecar, DamageIsFound) {
  const TemporaryFolder folder;
  const std::string bytes = numbers(100), json = to_json(sidecar_of(bytes));
  put(folder / "f", bytes);
  const auto bad = [&](const std::string& content, const std::string& why) {
    put(folder / "f.json", content);
    return throws(Fault::invalid_argument, {(folder / "f").native(), why},
                  [&] { Dataset{folder / "f"}; });
  };
  const auto changed = [&](const std::string& from, const std::string& to) {
    std::string text = json;
    EXPECT_NE(text.find(from), text.npos) << from;
    return text.replace(text.find(from), from.size(), to);
  };
  EXPECT_TRUE(bad("", "not JSON"));
  EXPECT_TRUE(bad("[]", "not an object"));
  EXPECT_TRUE(bad("7", "not an object"));
  EXPECT_TRUE(bad(json.substr(0, json.size() / 2), "not JSON"));
  EXPECT_TRUE(bad(changed("\"format\": 1", "\"format\": 9"), "format 9"));
  EXPECT_TRUE(bad(changed("\"kind\": \"bytes\"", "\"kind\": \"song\""), "'song'"));
  EXPECT_TRUE(bad(changed("\"kind\": \"bytes\"", "\"kind\": 7"), "kind is not text"));
  EXPECT_TRUE(bad(changed("\"kind\"", "\"kin\""), "no 'kind'"));
  EXPECT_TRUE(bad(changed("\"kind\"", "\"more\": 1, \"kind\""), "unknown key 'more'"));
  EXPECT_TRUE(bad(changed("\"bytes\": 100", "\"bytes\": 101"), "has 100 bytes"));
  EXPECT_TRUE(bad(changed("\"bytes\": 100", "\"bytes\": -100"), "whole number"));
  EXPECT_TRUE(bad(changed("\"bytes\": 100", "\"bytes\": 1e2"), "whole number"));
  EXPECT_TRUE(bad(changed("\"bytes\": 100", "\"bytes\": 18446744073709551615"), "whole number"));
  EXPECT_TRUE(bad(changed("\"bytes\": 60", "\"bytes\": \"60\""), "bytes of a source"));
  EXPECT_TRUE(bad(changed("\"path\"", "\"bath\""), "no 'path'"));
  EXPECT_TRUE(bad(changed("\"xxh3_128\": \"", "\"xxh3_128\": \"0"), "damaged"));
  EXPECT_TRUE(bad(changed("\"train\"", "\"training\""), "no 'train'"));
  EXPECT_TRUE(bad(std::string(200'000, '['), "not JSON"));

  const auto split = [&](Span train, Span valid, Span test) {
    Sidecar s = sidecar_of(bytes);
    s.splits = {train, valid, test};
    return bad(to_json(s), "want it within");
  };
  EXPECT_TRUE(split({0, 10}, {9, 60}, {70, 100}));
  EXPECT_TRUE(split({0, 10}, {60, 10}, {70, 100}));
  EXPECT_TRUE(split({0, 10}, {10, 60}, {70, 101}));
  EXPECT_TRUE(split({20, 30}, {0, 10}, {70, 100}));
  std::string flipped = bytes;
  flipped[50] = static_cast<char>(flipped[50] ^ 1);
  put(folder / "f", flipped);
  EXPECT_TRUE(bad(json, "damaged"));
  std::filesystem::remove(folder / "f.json");
  std::filesystem::create_directory(folder / "f.json");
  EXPECT_TRUE(
      throws(Fault::invalid_argument, {"f.json", "folder"}, [&] { Dataset{folder / "f"}; }));
}

TEST(WindowOrder, EveryWindowOnceAnEpochForEveryCount) {
  for (std::int64_t count = 1; count <= 2000; ++count) {
    // With context 1 the windows are the bytes, and nothing is left over.
    const WindowOrder order({5, 5 + count}, 1, static_cast<std::uint64_t>(count));
    ASSERT_EQ(order.windows_per_epoch(), count);
    std::vector<bool> seen(static_cast<std::size_t>(count));
    const std::int64_t epoch = count % 3;
    for (std::int64_t n = epoch * count; n < (epoch + 1) * count; ++n) {
      const std::int64_t at = order.begin(n) - 5;
      ASSERT_TRUE(at >= 0 && at < count && !seen[static_cast<std::size_t>(at)]) << count;
      seen[static_cast<std::size_t>(at)] = true;
    }
  }
}

TEST(WindowOrder, WindowsStayInTheSplitAndDoNotOverlap) {
  for (const std::int64_t size : {16, 17, 31, 32, 33, 47, 48, 100, 1000})
    for (const std::int64_t context : {1, 2, 7, 16}) {
      const Span split = {1000, 1000 + size};
      const WindowOrder order(split, context, 3);
      const std::int64_t windows = order.windows_per_epoch();
      ASSERT_GE(windows, 1);
      ASSERT_GE(windows, size / context - 1);
      std::set<std::int64_t> offsets;
      for (std::int64_t epoch = 0; epoch < 200; ++epoch) {
        std::vector<std::int64_t> begins;
        for (std::int64_t n = 0; n < windows; ++n)
          begins.push_back(order.begin(epoch * windows + n));
        std::sort(begins.begin(), begins.end());
        ASSERT_GE(begins.front(), split.begin);
        ASSERT_LE(begins.back() + context, split.end);
        for (std::size_t i = 1; i < begins.size(); ++i)
          ASSERT_EQ(begins[i] - begins[i - 1], context);
        offsets.insert(begins.front() - split.begin);
      }
      // All offsets below the context come up, where there is room.
      const std::int64_t slack = size - windows * context;
      EXPECT_EQ(static_cast<std::int64_t>(offsets.size()), std::min(context, slack + 1))
          << size << " " << context;
    }
}

TEST(WindowOrder, IsAFunctionOfSeedAndNumber) {
  const Span split = {0, 100'000};
  const WindowOrder a(split, 64, 1), same(split, 64, 1), other(split, 64, 2);
  int equal = 0, in_sequence = 0, as_last_epoch = 0;
  const std::int64_t windows = a.windows_per_epoch();
  for (std::int64_t n = windows; n < 2 * windows; ++n) {
    EXPECT_EQ(a.begin(n), same.begin(n));
    equal += a.begin(n) == other.begin(n);
    in_sequence += a.begin(n + 1) - a.begin(n) == 64;
    as_last_epoch += (a.begin(n) - a.begin(n - windows)) / 64 == 0;
  }
  EXPECT_LT(equal, 20);
  EXPECT_LT(in_sequence, 20);
  EXPECT_LT(as_last_epoch, 20);
  // Any number is as cheap as the first.
  EXPECT_LT(a.begin(std::numeric_limits<std::int64_t>::max()), 100'000);
}

// Each of the 3! orders of three windows comes up as often as chance has it.
TEST(WindowOrder, OrdersAreEvenlyRandom) {
  const WindowOrder order({0, 3}, 1, 9);
  std::map<std::vector<std::int64_t>, int> counts;
  constexpr int kEpochs = 6000;
  for (std::int64_t epoch = 0; epoch < kEpochs; ++epoch)
    ++counts[{order.begin(3 * epoch), order.begin(3 * epoch + 1), order.begin(3 * epoch + 2)}];
  ASSERT_EQ(counts.size(), 6u);
  for (const auto& [permutation, count] : counts) EXPECT_NEAR(count, kEpochs / 6, 160);
}

TEST(WindowOrder, RefusesWhatDoesNotFit) {
  EXPECT_TRUE(throws(Fault::invalid_argument, {"99 bytes", "100"}, [] {
    WindowOrder({1, 100}, 100, 1);
  }));
  EXPECT_TRUE(throws(Fault::invalid_argument, {"context 0"}, [] { WindowOrder({0, 9}, 0, 1); }));
  EXPECT_EQ(WindowOrder({0, 100}, 100, 1).begin(17), 0);
}

}  // namespace

}  // namespace longstride
