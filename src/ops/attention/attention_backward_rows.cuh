// What comes before and after the launches of attention backward.
#pragma once

#include "ops/attention/attention_backward_walk.cuh"

namespace longstride::ops::cuda {

// rows[b, h, i] = {factor L, D}, D = <dO, O>; {0, 0} where no key is seen. Zeroes `counters`
// counters.
template <class A>
void describe_rows(device::Stream stream, const AttentionBackward<A>& op, float factor,
                   bool whole_pieces, float2* rows, std::int32_t* counters, std::int64_t count);

// Zeros into dq, dk and dv of these heads.
template <class A>
void clear_heads(device::Stream stream, const AttentionBackward<A>& op,
                 const std::vector<std::int32_t>& heads);

// dk and dv of key tiles from the sums of their splits, in order. qk, v: padded widths.
template <class A>
void add_splits(device::Stream stream, const BackwardArguments<A>& arguments, std::int64_t blocks,
                int qk, int v);

}  // namespace longstride::ops::cuda
