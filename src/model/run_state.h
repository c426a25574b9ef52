// state.json of a checkpoint: what a run needs beside its tensors to go on, or to say which of its
// checkpoints is the best. docs/formats.md has the grammar.
#pragma once

#include <cstdint>
#include <optional>
#include <string>

namespace longstride {

struct BestValidation {
  std::int64_t step = 0;
  double bits = 0;
};

struct RunState {
  std::int64_t step = 0;  // updates done; data order and dropout follow from (seed, step)
  std::uint64_t seed = 0;
  std::string config;              // resolved TOML
  std::string data;                // Dataset::fingerprint()
  std::int64_t metrics_bytes = 0;  // length of metrics.jsonl at this step
  std::optional<BestValidation> best;
  std::int64_t skipped = 0, skipped_in_a_row = 0;  // updates left out for non-finite numbers
  double bits = 0;             // a symbol, of the last step; NaN where it was skipped
  std::string device = "cpu";  // where the steps were made: "cpu" | "cuda"
  double loss_scale = 1;       // of the step to come; 1 but in fp16
};

std::string to_json(const RunState& state);

// Every field but the last two is required: a missing or mistyped one, or another format version,
// throws invalid_argument naming it. `origin` is the file.
RunState parse_run_state(const std::string& json, const std::string& origin);

}  // namespace longstride
