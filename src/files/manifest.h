// manifest.json of a checkpoint: what must lie in the folder, to the bit. docs/formats.md.
#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <string>

namespace longstride {

inline constexpr const char* kManifestName = "manifest.json";
inline constexpr const char* kModelName = "model.safetensors";
inline constexpr const char* kOptimizerName = "optimizer.safetensors";
inline constexpr const char* kStateName = "state.json";

struct FileRecord {
  std::int64_t bytes = 0;
  std::string hash;  // XXH3-128, 32 lower-case digits
};

struct Manifest {
  std::int64_t step = 0;
  std::map<std::string, FileRecord> files;  // by name in the folder
};

std::string to_json(const Manifest& manifest);

// Throws invalid_argument: no JSON, another version of the format, unknown or missing keys, names
// that leave the folder.
Manifest parse_manifest(const std::string& content);

}  // namespace longstride
