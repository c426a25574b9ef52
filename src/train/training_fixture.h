// A small model, data and a run folder for the tests of training.
#pragma once

#include <gtest/gtest.h>

#include <filesystem>
#include <string>
#include <vector>

#include "base/rng.h"
#include "files/checkpoint.h"
#include "longstride/config.h"
#include "longstride/train.h"
#include "model/parameters.h"
#include "temporary_folder.h"

namespace longstride::test {

inline Config small_config() {
  Config config;
  config.name = "small";
  config.model.layers = 2;
  config.model.width = 16;
  config.model.heads = 2;
  config.model.context = 32;
  config.model.attention = {"fixed(8, 2)", "strided(8)"};
  config.model.dropout = 0.1;
  config.train.steps = 12;
  config.train.batch = 4;
  config.train.warmup = 3;
  config.train.lr = 0.01;
  config.train.ema = 0.9;
  config.train.validate_every = 0;
  config.train.checkpoint_every = 0;
  return config;
}

// With the whole batch at once, where the config names no micro-batch.
inline Config at_once(Config config) {
  if (config.train.micro_batch == 0) config.train.micro_batch = config.train.batch;
  return config;
}

// Bytes that have something to learn: letters where every other one depends on the one before.
inline std::vector<std::uint8_t> some_data(std::int64_t size) {
  std::vector<std::uint8_t> data;
  for (std::int64_t i = 0; i < size; ++i) {
    const auto r = random4(99, Stream::test, 0, static_cast<std::uint64_t>(i))[0];
    data.push_back(static_cast<std::uint8_t>(i % 2 ? data.back() + 1 : 'a' + r % 5));
  }
  return data;
}

class TrainingFixture : public testing::Test {
 protected:
  TrainingFixture() {
    const auto bytes = some_data(4000);
    put(data(), {reinterpret_cast<const char*>(bytes.data()), bytes.size()});
  }

  std::filesystem::path data() const { return folder_ / "data"; }
  std::filesystem::path run(const std::string& name) const { return folder_ / name; }

  TrainOptions options(const Config& config, const std::string& name) const {
    TrainOptions out;
    out.config = config;
    out.data = data();
    out.run = run(name);
    return out;
  }

  // All tensors of a checkpoint, in the order of the layout.
  static std::vector<float> tensors(const std::filesystem::path& checkpoint, const Config& config) {
    const ParameterLayout layout(config.model);
    std::vector<std::string> groups = {"m/", "v/"};
    if (config.train.ema > 0) groups.push_back("weights/");
    const TensorFile model(checkpoint / "model.safetensors");
    const TensorFile optimizer(checkpoint / "optimizer.safetensors");
    std::vector<float> all;
    const auto append = [&](const TensorFile& file, const std::string& prefix) {
      for (const Parameter& t : layout.tensors) {
        all.resize(all.size() + static_cast<std::size_t>(t.size));
        file.read(prefix + t.name, t.shape, all.data() + (std::ssize(all) - t.size));
      }
    };
    append(model, "");
    for (const auto& group : groups) append(optimizer, group);
    return all;
  }

  TemporaryFolder folder_;
};

}  // namespace longstride::test
