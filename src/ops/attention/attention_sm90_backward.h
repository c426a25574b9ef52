// The launches of the Hopper backward kernels for widths up to kQk and kV.
#pragma once

#include "ops/attention/attention_sm90.h"

namespace longstride::ops::cuda::sm90 {

// Of each row: L log2(e) (+inf for rows without keys and behind the end, so that P = 0 there) and
// D = <dO, O> (0 behind the end), [B, H, padded]; written by query_gradient, read by key_gradient.
struct RowNumbers {
  float *lse = nullptr, *mean = nullptr;
  std::int32_t padded = 0;  // a multiple of kQueryTile
};
inline constexpr int kQueryTile = 64;

// kShort: where queries see few keys.
template <class A, int kQk, int kV, bool kShort>
void query_gradient(device::Stream stream, const AttentionBackward<A>& op, const Line& line,
                    const RowNumbers& rows);
template <class A, int kQk, int kV>
void key_gradient(device::Stream stream, const AttentionBackward<A>& op, const Line& line,
                  const RowNumbers& rows);

}  // namespace longstride::ops::cuda::sm90
