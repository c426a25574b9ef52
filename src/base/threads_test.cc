#include "base/threads.h"

#include <gtest/gtest.h>

#include <atomic>
#include <cstdlib>
#include <stdexcept>
#include <string>
#include <vector>

namespace longstride {

namespace {

class ThreadsTest : public testing::TestWithParam<int> {
 protected:
  void SetUp() override { set_threads(GetParam()); }
  void TearDown() override { set_threads(0); }
};

TEST_P(ThreadsTest, EachTaskRunsOnce) {
  for (const std::int64_t count : {0, 1, 2, 3, 1000}) {
    std::vector<std::atomic<int>> runs(static_cast<std::size_t>(count));
    parallel_for(count, [&](std::int64_t i) { ++runs[static_cast<std::size_t>(i)]; });
    for (const auto& run : runs) EXPECT_EQ(run, 1);
  }
  parallel_for(-5, [](std::int64_t) { FAIL(); });
}

TEST_P(ThreadsTest, RangesCoverInFixedPieces) {
  std::vector<std::int64_t> ends(4, -1);
  parallel_ranges(10, 3, [&](std::int64_t begin, std::int64_t end) {
    ends[static_cast<std::size_t>(begin / 3)] = end;
  });
  EXPECT_EQ(ends, (std::vector<std::int64_t>{3, 6, 9, 10}));
  parallel_ranges(0, 3, [](std::int64_t, std::int64_t) { FAIL(); });
}

TEST_P(ThreadsTest, FirstExceptionByIndexIsRethrown) {
  for (int repeat = 0; repeat < 20; ++repeat) {
    std::string message;
    try {
      parallel_for(100, [](std::int64_t i) {
        if (i % 10 == 7) throw std::runtime_error("task " + std::to_string(i));
      });
    } catch (const std::runtime_error& error) {
      message = error.what();
    }
    EXPECT_EQ(message, "task 7");
  }
  // And the pool works on.
  std::atomic<int> done{0};
  parallel_for(10, [&](std::int64_t) { ++done; });
  EXPECT_EQ(done, 10);
}

TEST_P(ThreadsTest, NestedCallsRunInline) {
  std::atomic<int> done{0};
  parallel_for(8, [&](std::int64_t) {
    std::int64_t last = -1;  // no lock: the inner tasks run here, in order
    parallel_for(20, [&](std::int64_t i) {
      EXPECT_EQ(i, last + 1);
      last = i;
      ++done;
    });
  });
  EXPECT_EQ(done, 160);
}

INSTANTIATE_TEST_SUITE_P(Counts, ThreadsTest, testing::Values(1, 2, 4));

TEST(Threads, CountComesFromTheCallOrTheEnvironment) {
  set_threads(3);
  EXPECT_EQ(threads(), 3);
  setenv("LONGSTRIDE_NUM_THREADS", "5", 1);
  set_threads(0);
  EXPECT_EQ(threads(), 5);
  setenv("LONGSTRIDE_NUM_THREADS", "nonsense", 1);
  set_threads(0);
  EXPECT_GE(threads(), 1);
  unsetenv("LONGSTRIDE_NUM_THREADS");
  set_threads(0);
  EXPECT_GE(threads(), 1);
}

}  // namespace

}  // namespace longstride
