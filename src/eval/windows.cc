#include "eval/windows.h"

#include <algorithm>

#include "base/integers.h"
#include "longstride/error.h"

namespace longstride {

Windows::Windows(std::int64_t symbols, std::int64_t context, std::int64_t min_context)
    : symbols_(symbols), context_(context), min_context_(min_context) {
  if (min_context < 0 || min_context >= context)
    throw invalid_argument("eval: min_context is ", min_context, ", want 0 to ", context - 1,
                           " (the model's context is ", context, ")");
  if (symbols < 0) throw invalid_argument("eval: ", symbols, " symbols to score, want >= 0");
  const std::int64_t step = context - min_context;
  const std::int64_t behind_first = std::max<std::int64_t>(0, symbols - context);
  count_ = symbols == 0 ? 0 : 1 + ceil_div(behind_first, step);
}

Window Windows::operator[](std::int64_t w) const {
  const std::int64_t begin = w * (context_ - min_context_);
  return {begin, std::min(symbols_, begin + context_), w == 0 ? 0 : begin + min_context_};
}

}  // namespace longstride
