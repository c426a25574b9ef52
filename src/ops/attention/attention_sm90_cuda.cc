#include "ops/attention/attention_sm90.h"

#include "base/integers.h"
#include "ops/attention/attention_sm90_backward.h"
#include "ops/attention/attention_sm90_forward.h"
#include "ops/attention/attention_sm90_maps.h"
#include "ops/attention/attention_sm90_short.h"

namespace longstride::ops::cuda::sm90 {

namespace {

constexpr int kTile = 128;  // of keys

// Tiles are counted in 32 bits.
bool fits(std::int64_t batch, std::int64_t length, const Line& line) {
  return Order::fits(2 + length / 32, batch * static_cast<std::int64_t>(line.passes->size()));
}

}  // namespace

template <class A>
bool takes(const Attention<A>& op, const Line& line) {
  return device::is_hopper() && op.scale > 0 && op.q.width <= 128 && op.v.width <= 128 &&
         can_map(op.q) && can_map(op.k) && can_map(op.v) && can_map(op.out) && op.q.batch > 0 &&
         can_tile(line, kTile) && fits(op.q.batch, op.q.length, line);
}

template <class A>
void attention(device::Stream stream, const Attention<A>& op, const Line& line) {
  if (walks(op, line)) return short_attention(stream, op, line);
  if (op.q.width > 64) return forward<A, 128, 128, false>(stream, op, line);
  if (op.v.width > 64) return forward<A, 64, 128, false>(stream, op, line);
  if (sees_few(line, 2 * kTile)) return forward<A, 64, 64, true>(stream, op, line);
  forward<A, 64, 64, false>(stream, op, line);
}

template <class A>
bool takes(const AttentionBackward<A>& op, const Line& line) {
  const bool small = op.q.width <= 64 && op.v.width <= 64;  // as QueryGradientShape::kKeys
  return device::is_hopper() && op.scale > 0 && op.q.width <= 128 && op.v.width <= 128 &&
         can_map(op.q) && can_map(op.k) && can_map(op.v) && can_map(op.out) && can_map(op.dout) &&
         can_map(op.dq) && can_map(op.dk) && can_map(op.dv) && op.q.batch > 0 &&
         can_tile(line, kTile) && (small || can_tile(line, kTile / 2)) && can_turn(line) &&
         fits(op.q.batch, op.q.length, line);
}

template <class A>
std::int64_t backward_scratch(const AttentionBackward<A>& op) {
  return 2 * op.q.batch * op.q.heads * ceil_div(op.q.length, kQueryTile) * kQueryTile;
}

template <class A>
void attention_backward(device::Stream stream, const AttentionBackward<A>& op, const Line& line) {
  if (op.q.width <= 64 && is_short(line)) return short_attention_backward(stream, op, line);
  RowNumbers rows;
  rows.padded = static_cast<std::int32_t>(ceil_div(op.q.length, kQueryTile) * kQueryTile);
  rows.lse = op.scratch.data;
  rows.mean = rows.lse + op.q.batch * op.q.heads * rows.padded;
  const auto run = [&](auto query, auto key) {
    query(stream, op, line, rows);
    key(stream, op, line, rows);
  };
  if (op.q.width > 64) return run(query_gradient<A, 128, 128, false>, key_gradient<A, 128, 128>);
  if (op.v.width > 64) return run(query_gradient<A, 64, 128, false>, key_gradient<A, 64, 128>);
  if (sees_few(line, 2 * kTile))
    return run(query_gradient<A, 64, 64, true>, key_gradient<A, 64, 64>);
  run(query_gradient<A, 64, 64, false>, key_gradient<A, 64, 64>);
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
