// Which windows of a split are run and which of their symbols count, so that every symbol is scored
// exactly once.
//
//   window w covers [w s, min(n, w s + context))     s = context - min_context
//   w = 0 scores all it covers; w > 0 scores what lies behind its first min_context symbols
#pragma once

#include <cstdint>

namespace longstride {

struct Window {
  std::int64_t begin = 0, end = 0;  // symbols the model sees
  std::int64_t first = 0;           // [first, end) count
  std::int64_t scored() const { return end - first; }
};

class Windows {
 public:
  // Throws invalid_argument unless 0 <= min_context < context and symbols >= 0.
  Windows(std::int64_t symbols, std::int64_t context, std::int64_t min_context);

  std::int64_t count() const { return count_; }
  std::int64_t symbols() const { return symbols_; }
  Window operator[](std::int64_t w) const;

 private:
  std::int64_t symbols_, context_, min_context_, count_;
};

}  // namespace longstride
