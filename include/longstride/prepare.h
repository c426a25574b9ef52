// From a user's files to one memory-mapped byte file with a JSON sidecar (docs/formats.md).
#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <string>
#include <vector>

namespace longstride {

struct PrepareOptions {
  std::vector<std::filesystem::path> sources;  // files, or folders (walked in order of name)
  std::filesystem::path out;
  bool force = false;  // overwrite an output made from other sources
  std::function<void(std::int64_t done, std::int64_t of)> on_progress;
};

struct PrepareResult {
  std::int64_t bytes = 0, files = 0;
  std::int64_t train = 0, valid = 0, test = 0;  // sizes of the splits
  std::string hash;
  bool unchanged = false;  // the output was already there, made from the same sources
};

PrepareResult prepare(const PrepareOptions& options);

}  // namespace longstride
