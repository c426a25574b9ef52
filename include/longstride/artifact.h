// What a run folder, a checkpoint folder or a safetensors file holds.
#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <string>
#include <vector>

namespace longstride {

struct TensorFact {
  std::string name, dtype;
  std::vector<std::int64_t> shape;
  std::int64_t values = 0, bytes = 0;
};

struct CheckpointFact {
  std::filesystem::path folder;
  std::int64_t step = 0;
  std::string fault;  // empty: sizes and checksums are as the manifest says
};

struct ArtifactReport {
  enum class Kind { run, checkpoint, safetensors } kind = Kind::run;
  std::filesystem::path path;
  std::string config;                       // run: its resolved config.toml
  std::vector<CheckpointFact> checkpoints;  // run: all; checkpoint: itself
  std::map<std::string, std::string> metadata;
  std::vector<TensorFact> tensors;  // of the file, or of the newest good checkpoint's model
  std::int64_t values = 0;          // of all tensors together
};

// Reads only. Throws invalid_argument where the path is none of the three, or a file is malformed.
ArtifactReport inspect_artifact(const std::filesystem::path& path);

}  // namespace longstride
