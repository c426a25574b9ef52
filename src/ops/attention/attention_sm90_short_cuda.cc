#include "ops/attention/attention_sm90_short.h"

#include <algorithm>

namespace longstride::ops::cuda::sm90 {

bool is_short(const Line& line) {
  return std::all_of(line.passes->begin(), line.passes->end(), [&](const HeadPass& pass) {
    return pass.only_part >= 0 && is_short((*line.parts)[static_cast<std::size_t>(pass.only_part)]);
  });
}

bool in_pairs(const Line& line, std::int64_t heads) {
  const auto& passes = *line.passes;
  if (heads % 2 != 0 || passes.size() != static_cast<std::size_t>(heads)) return false;
  for (std::size_t n = 0; n < passes.size(); ++n) {
    const auto part = [&](std::size_t m) {
      return (*line.parts)[static_cast<std::size_t>(passes[m].only_part)];
    };
    const DevicePart mine = part(n), other = part(n ^ 1);
    if (passes[n].head != static_cast<std::int32_t>(n) || mine.type != other.type ||
        mine.window != other.window || mine.fold.by != other.fold.by)
      return false;
  }
  return true;
}

template <class A>
void short_attention_backward(device::Stream stream, const AttentionBackward<A>& op,
                              const Line& line) {
  if (op.v.width > 64) return short_backward<A, 64, 128, 1>(stream, op, line);
  if (op.q.width == 32 && op.v.width == 32 && in_pairs(line, op.q.heads))
    return short_backward<A, 64, 64, 2>(stream, op, line);
  short_backward<A, 64, 64, 1>(stream, op, line);
}

template void short_attention_backward(device::Stream, const AttentionBackward<bf16>&, const Line&);
template void short_attention_backward(device::Stream, const AttentionBackward<fp16>&, const Line&);

}  // namespace longstride::ops::cuda::sm90
