// Generation. Symbol number i of sample s is a function of (weights, prompt, seed, s, i, cuts) on
// one kind of device: devices round logits differently, so now and then a draw falls on another
// symbol.
#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <string>
#include <vector>

namespace longstride {

struct SampleOptions {
  std::filesystem::path run_or_checkpoint;
  std::string prompt;         // bytes; may be empty
  std::int64_t length = 256;  // symbols to generate, after the prompt
  std::int64_t count = 1;
  std::uint64_t seed = 1;
  double temperature = 1.0;  // 0: the most probable symbol (lowest byte on ties)
  // Cuts, in this order, each on the probabilities that the one before kept:
  std::int64_t top_k = 0;      // 0: off
  double top_p = 1.0;          // 1: off
  double min_p = 0;            // 0: off; keep p >= min_p * largest p
  bool cache = true;           // false: the full pass again for every symbol; same bytes on the CPU
  std::string device = "cpu";  // | "cuda" | "auto": the GPU where there is one that will do
  std::string precision = "f32";  // | "bf16" on the GPU: what products, attention and cache hold
  // Called in order; `sample` counts from 0. Returning false stops cleanly.
  std::function<bool(std::int64_t sample, std::uint8_t symbol)> on_symbol;
  std::function<void(const std::string&)> on_warning;  // damaged checkpoints passed over
};

struct SampleResult {
  std::vector<std::string> samples;  // generated symbols, without the prompt
  double seconds = 0;
  std::int64_t symbols = 0;
  std::int64_t cache_bytes = 0;
  bool stopped = false;
  std::string device;  // "cpu", or "cuda (NAME)"
};

// A sequence longer than the model's context goes on from its last context/2 symbols each time the
// context is full (with cache and without alike).
SampleResult sample(const SampleOptions& options);

}  // namespace longstride
