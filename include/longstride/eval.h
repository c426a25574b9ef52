// Bits per byte, honestly: every symbol of the split scored exactly once, the tail included.
#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <string>

namespace longstride {

// A run (its best checkpoint if validated, else the newest), or one checkpoint folder.
struct EvalOptions {
  std::filesystem::path run_or_checkpoint;
  std::filesystem::path data;
  std::string split = "test";    // train | valid | test | all
  std::int64_t min_context = 0;  // each symbol but the first ones has at least this many before it
  std::int64_t max_symbols = 0;  // score only the first ones; 0: all
  std::filesystem::path
      per_symbol;              // empty, or a file for each symbol's bits (float64, little endian)
  std::string device = "cpu";  // | "cuda" | "auto": the GPU where there is one that will do
  std::string precision = "f32";  // | "bf16" on the GPU: what products and attention read
  std::function<void(std::int64_t done, std::int64_t of)> on_progress;
  std::function<void(const std::string&)> on_warning;  // damaged checkpoints passed over
};

struct EvalResult {
  double bits_per_symbol = 0;  // mean of the per-symbol bits, summed in order in float64
  std::int64_t symbols = 0;
  std::int64_t windows = 0;
  double seconds = 0;
  std::filesystem::path checkpoint;
  std::int64_t step = 0;
  std::string device;  // "cpu", or "cuda (NAME)"
};

// Windows start every (context - min_context) symbols of the split. The first is scored whole (its
// first symbol follows the start symbol); each later one scores what lies behind its first
// min_context symbols. The last may be short. Reads files only; never touches the run.
EvalResult evaluate(const EvalOptions& options);

}  // namespace longstride
