// What a pattern, a preset or a run is, for people and machines.
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

#include "longstride/pattern.h"

namespace longstride {

struct HeadReport {
  std::vector<std::string> parts;  // canonical spelling
  std::int64_t heads = 1;          // of this kind
  std::int64_t pairs = 0, blocks = 0, cache_keys = 0, read_keys = 0;
  double density = 0;  // share of the causal pairs
  double forward_flops = 0, backward_flops = 0, forward_bytes = 0,
         backward_bytes = 0;  // one head, B = 1
};

struct PatternReport {
  std::string pattern;   // as given
  std::string expanded;  // aliases expanded
  std::int64_t length = 0, block = 0, head_width = 0;
  std::vector<HeadReport> kinds;
  std::int64_t pairs = 0;  // of all heads together
};

struct PatternOptions {
  std::string spec;
  std::int64_t length = 0;
  std::int64_t block = 32;
  std::int64_t heads = 0;        // 0: the sum of the weights in the spec
  std::int64_t head_width = 64;  // for flops and bytes (bfloat16: 2 bytes a value)
};

PatternReport inspect_pattern(const PatternOptions& options);

// The mask as text (at most `cells` x `cells` characters, darker = more pairs) and as a PNG: each
// head kind beside the merged view, as in the paper's Figure 3; queries down, keys across.
std::string draw_pattern_text(const PatternOptions& options, std::int64_t cells = 48);
void draw_pattern_png(const PatternOptions& options, const std::filesystem::path& file);

}  // namespace longstride
