// What the backward pass makes again instead of keeping it.
#pragma once

#include <cstdint>

namespace longstride {

// All zero: nothing. The same bits in all cases.
struct Recompute {
  // Above 0: only the residual stream is kept, in front of every `segment` blocks, and these run
  // again (all but the last ones, which are still there).
  std::int64_t segment = 0;
  // Of each segment (of all blocks where there are none) the first `qkv` do not keep their queries,
  // keys and values, and the first `inner` not what goes into the activation: one product more
  // each.
  std::int64_t qkv = 0, inner = 0;

  explicit operator bool() const { return segment > 0 || qkv > 0 || inner > 0; }
  bool operator==(const Recompute&) const = default;
};

}  // namespace longstride
