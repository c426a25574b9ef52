// Short line patterns on Hopper (attention_sm90_short_runs.h): kernels that walk along the sequence
// and load every row once, forward, and backward with all three gradients in one kernel.
#pragma once

#include "ops/attention/attention_sm90.h"
#include "ops/attention/attention_sm90_short_runs.h"

namespace longstride::ops::cuda::sm90 {

// Whether every pass of the line has one part, which is_short().
bool is_short(const Line& line);

// Whether short_attention() can be used, what takes() presumed, and is the faster way: rows alone
// of heads 64 wide take 0.094 ms with it and 0.086 ms without (B 4, H 8, N 12,288, rows of 128).
template <class A>
bool walks(const Attention<A>& op, const Line& line);

// Whether heads 2 n and 2 n + 1 of all are of the line and alike, so that narrow ones may share a
// tile.
bool in_pairs(const Line& line, std::int64_t heads);

// For what takes() and is_short(), q and k at most 64 wide; forward: nothing to be merged with.
template <class A>
void short_attention(device::Stream stream, const Attention<A>& op, const Line& line);
template <class A>
void short_attention_backward(device::Stream stream, const AttentionBackward<A>& op,
                              const Line& line);

// Widths up to kQk / kHeads and kV / kHeads; kHeads = 2: in pairs, exactly as wide.
template <class A, int kQk, int kV, int kHeads>
void short_forward(device::Stream stream, const Attention<A>& op, const Line& line);
template <class A, int kQk, int kV, int kHeads>
void short_backward(device::Stream stream, const AttentionBackward<A>& op, const Line& line);

}  // namespace longstride::ops::cuda::sm90
