#include "ops/attention/attention_sm90.h"

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

template bool takes(const Attention<bf16>&, const Line&);
template bool takes(const Attention<fp16>&, const Line&);
template void attention(device::Stream, const Attention<bf16>&, const Line&);
template void attention(device::Stream, const Attention<fp16>&, const Line&);

}  // namespace longstride::ops::cuda::sm90
