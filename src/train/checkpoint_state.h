// The state of training as a checkpoint, and back.
//
//   model.safetensors      NAME            the weights to evaluate: averages where train.ema > 0
//   optimizer.safetensors  m/NAME v/NAME   and weights/NAME where train.ema > 0
//   state.json             model/run_state.h
#pragma once

#include <filesystem>
#include <string>

#include "longstride/config.h"
#include "model/parameters.h"
#include "model/run_state.h"
#include "train/train_state.h"

namespace longstride {

// Bytes of one checkpoint, headers not counted.
std::int64_t checkpoint_bytes(const Config& config, const ParameterLayout& layout);

// Publishes checkpoint `about.step`. Throws (numerics) where a tensor holds a NaN or an infinity:
// such a state never becomes a good checkpoint.
std::filesystem::path save_checkpoint(const std::filesystem::path& run, const Config& config,
                                      const ParameterLayout& layout, const TrainState& state,
                                      const RunState& about);

RunState read_run_state(const std::filesystem::path& checkpoint);

// train.micro_batch of the run's newest checkpoint, which is not verified; 0 where there is none,
// or none that was made on this device ("cpu" | "cuda"). Another one would change the order of
// sums.
std::int64_t recorded_micro_batch(const std::filesystem::path& run, const std::string& device);

// Fills `state` from a verified checkpoint made by the same config.
void load_checkpoint(const std::filesystem::path& checkpoint, const ParameterLayout& layout,
                     const RunState& about, TrainState& state);

// Throws invalid_argument listing every setting of `config` that may not differ from those the run
// was started with. Returns a warning where one differs that may but changes the result, or the
// device ("cpu" | "cuda") does, else "".
std::string check_same_config(const Config& config, const std::string& device,
                              const RunState& about, const std::filesystem::path& run);

}  // namespace longstride
