// Attention on Hopper: passes over consecutive queries (PassGroup::stride 0) with tensor maps,
// wgmma and one loading thread. What it does not take is left to the kernels for every GPU.
#pragma once

#include <cstdint>
#include <vector>

#include "device/cuda.h"
#include "ops/attention/attention_cuda.h"
#include "ops/attention/device_plan.h"

namespace longstride::ops::cuda::sm90 {

// The line passes of a plan, on host and device.
struct Line {
  const std::vector<DevicePart>* parts = nullptr;
  const std::vector<HeadPass>* passes = nullptr;
  const DevicePart* device_parts = nullptr;  // copies of both
  const HeadPass* device_passes = nullptr;
};

// Takes widths that are multiples of 8 up to 128, 16-byte addresses and strides, scale > 0, parts
// without lists and masks, at most 3 kinds of summaries, each no wider than a tile of 128 keys or a
// multiple of it. Everywhere but on Hopper, and with LONGSTRIDE_CUDA_PORTABLE=1, it takes nothing.
// A: bf16, fp16. Tensor cores read whole tiles: a NaN in a key or value can reach rows that may not
// see it.
template <class A>
bool takes(const Attention<A>& op, const Line& line);
// Runs the passes of the line, merging with the (out, lse) of earlier passes where they say so.
template <class A>
void attention(device::Stream stream, const Attention<A>& op, const Line& line);

// Beside the above: a summary is alone or beside a row of its stride; no part is cut by rows of
// another. Writes all elements of dq, dk, dv of the line's heads, of the pairs of the line's parts;
// lse and out are those of all parts of a head.
template <class A>
bool takes(const AttentionBackward<A>& op, const Line& line);
// Floats of scratch, at a multiple of 16 bytes.
template <class A>
std::int64_t backward_scratch(const AttentionBackward<A>& op);
template <class A>
void attention_backward(device::Stream stream, const AttentionBackward<A>& op, const Line& line);

}  // namespace longstride::ops::cuda::sm90
