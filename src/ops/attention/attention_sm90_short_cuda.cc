#include "ops/attention/attention_sm90_short.h"

#include <algorithm>

namespace longstride::ops::cuda::sm90 {

bool is_short(const Line& line) {
  return std::all_of(line.passes->begin(), line.passes->end(), [&](const HeadPass& pass) {
    return pass.only_part >= 0 && is_short((*line.parts)[static_cast<std::size_t>(pass.only_part)]);
  });
}

template <class A>
bool walks(const Attention<A>& op, const Line& line) {
  if (op.q.width > 64 || !is_short(line)) return false;
  bool merges = false, rows = true;
  for (const HeadPass& pass : *line.passes) {
    merges |= pass.merges != 0;
    rows &= (*line.parts)[static_cast<std::size_t>(pass.only_part)].type == PartType::row;
  }
  const bool middling = op.v.width <= 64 && std::max(op.q.width, op.v.width) > 32;
  return !merges && !(rows && middling);
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

namespace {

// Calls act<kQk, kV, kHeads>().
template <class Op, class Act>
void by_width(const Op& op, const Line& line, const Act& act) {
  if (op.v.width > 64) return act.template operator()<64, 128, 1>();
  if (op.q.width == 32 && op.v.width == 32 && in_pairs(line, op.q.heads))
    return act.template operator()<64, 64, 2>();
  act.template operator()<64, 64, 1>();
}

}  // namespace

template <class A>
void short_attention(device::Stream stream, const Attention<A>& op, const Line& line) {
  by_width(op, line, [&]<int kQk, int kV, int kHeads>() {
    short_forward<A, kQk, kV, kHeads>(stream, op, line);
  });
}

template <class A>
void short_attention_backward(device::Stream stream, const AttentionBackward<A>& op,
                              const Line& line) {
  by_width(op, line, [&]<int kQk, int kV, int kHeads>() {
    short_backward<A, kQk, kV, kHeads>(stream, op, line);
  });
}

template bool walks(const Attention<bf16>&, const Line&);
template bool walks(const Attention<fp16>&, const Line&);
template void short_attention(device::Stream, const Attention<bf16>&, const Line&);
template void short_attention(device::Stream, const Attention<fp16>&, const Line&);
template void short_attention_backward(device::Stream, const AttentionBackward<bf16>&, const Line&);
template void short_attention_backward(device::Stream, const AttentionBackward<fp16>&, const Line&);

}  // namespace longstride::ops::cuda::sm90
