// A trained model out of a run, a checkpoint or a model.safetensors.
#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <string>

#include "longstride/config.h"
#include "model/parameters.h"
#include "tensor/tensor.h"

namespace longstride {

// Metadata keys of the safetensors files of a checkpoint: they make each file stand alone.
inline constexpr const char* kConfigKey = "longstride.config";  // resolved TOML
inline constexpr const char* kStepKey = "longstride.step";

struct LoadedModel {
  Config config;
  ParameterLayout layout;
  Buffer<float> weights;             // [layout.extent]
  std::filesystem::path checkpoint;  // the folder, or the file where a file was named
  std::int64_t step = 0;             // 0 where a bare file does not say
};

using Warn = std::function<void(const std::string&)>;

// `path` is a run (its best checkpoint if it was validated, else the newest good one), RUN's folder
// `checkpoints`, one folder step-N, or a safetensors file. The config comes from the metadata, or
// else from config.toml beside the file or two folders up. Warns of damaged checkpoints that were
// passed over; throws invalid_argument where nothing can be loaded.
LoadedModel load_model(const std::filesystem::path& path, const Warn& warn);

}  // namespace longstride
