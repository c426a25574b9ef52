#include "ops/attention/attention_sm90.h"

#include <algorithm>

#include "base/integers.h"
#include "ops/attention/attention_sm90_backward.h"
#include "ops/attention/attention_sm90_forward.h"
#include "ops/attention/attention_sm90_maps.h"

namespace longstride::ops::cuda::sm90 {

template <class A>
bool takes(const Attention<A>& op, const Line& line) {
  constexpr int kTile = 128;
  return device::is_hopper() && op.scale > 0 && op.q.width <= 128 && op.v.width <= 128 &&
         can_map(op.q) && can_map(op.k) && can_map(op.v) && can_map(op.out) && op.q.batch > 0 &&
         can_tile(line, kTile);
}

template <class A>
void attention(device::Stream stream, const Attention<A>& op, const Line& line) {
  if (op.q.width > 64) return forward<A, 128, 128>(stream, op, line);
  if (op.v.width > 64) return forward<A, 64, 128>(stream, op, line);
  forward<A, 64, 64>(stream, op, line);
}

template <class A>
bool takes(const AttentionBackward<A>& op, const Line& line) {
  const auto heads = static_cast<std::int64_t>(line.passes->size());
  const bool whole =
      heads == op.q.heads && std::none_of(line.passes->begin(), line.passes->end(),
                                          [](const HeadPass& pass) { return pass.merges != 0; });
  return whole && device::is_hopper() && op.scale > 0 && op.q.width <= 128 && op.v.width <= 128 &&
         can_map(op.q) && can_map(op.k) && can_map(op.v) && can_map(op.out) && can_map(op.dout) &&
         can_map(op.dq) && can_map(op.dk) && can_map(op.dv) && op.q.batch > 0 &&
         can_tile(line, 128) && can_turn(line);
}

namespace {

constexpr std::int64_t kRowPadding = 64;  // a tile of queries

}  // namespace

template <class A>
std::int64_t backward_scratch(const AttentionBackward<A>& op) {
  return 2 * op.q.batch * op.q.heads * ceil_div(op.q.length, kRowPadding) * kRowPadding;
}

template <class A>
void attention_backward(device::Stream stream, const AttentionBackward<A>& op, const Line& line) {
  RowNumbers rows;
  rows.padded = static_cast<std::int32_t>(ceil_div(op.q.length, kRowPadding) * kRowPadding);
  rows.lse = op.scratch.data;
  rows.mean = rows.lse + op.q.batch * op.q.heads * rows.padded;
  describe_rows(stream, op, rows);
  const auto run = [&](auto query, auto key) {
    key(stream, op, line, rows);
    query(stream, op, line, rows);
  };
  if (op.q.width > 64) return run(query_gradient<A, 128, 128>, key_gradient<A, 128, 128>);
  if (op.v.width > 64) return run(query_gradient<A, 64, 128>, key_gradient<A, 64, 128>);
  run(query_gradient<A, 64, 64>, key_gradient<A, 64, 64>);
}

template bool takes(const Attention<bf16>&, const Line&);
template bool takes(const Attention<fp16>&, const Line&);
template void attention(device::Stream, const Attention<bf16>&, const Line&);
template void attention(device::Stream, const Attention<fp16>&, const Line&);
template bool takes(const AttentionBackward<bf16>&, const Line&);
template bool takes(const AttentionBackward<fp16>&, const Line&);
template std::int64_t backward_scratch(const AttentionBackward<bf16>&);
template std::int64_t backward_scratch(const AttentionBackward<fp16>&);
template void attention_backward(device::Stream, const AttentionBackward<bf16>&, const Line&);
template void attention_backward(device::Stream, const AttentionBackward<fp16>&, const Line&);

}  // namespace longstride::ops::cuda::sm90
