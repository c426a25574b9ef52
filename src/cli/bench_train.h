// Whole training steps and sampling, timed on random bytes in a temporary folder.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "cli/command.h"

namespace longstride::cli {

struct BenchTrainArguments {
  std::string preset = "small-text";
  std::vector<std::string> settings;  // key=value
  std::int64_t steps = 10;
  std::string device = "cpu";
};

struct BenchGrowthArguments {
  std::int64_t min_length = 4096, max_length = 16384;
  std::vector<std::string> settings;
  std::string device = "cpu";
};

struct BenchSampleArguments {
  std::string preset = "small-text";
  std::vector<std::string> settings;
  std::int64_t length = 0;  // 0: the context, at most 2,000
};

int bench_train(const BenchTrainArguments& arguments, const Globals& globals);
int bench_growth(const BenchGrowthArguments& arguments, const Globals& globals);
int bench_sample(const BenchSampleArguments& arguments, const Globals& globals);

}  // namespace longstride::cli
