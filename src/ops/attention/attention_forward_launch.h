// The launches of attention forward, one group of passes each.
#pragma once

#include "device/cuda.h"
#include "ops/attention/attention_cuda.h"
#include "ops/attention/device_plan.h"

namespace longstride::ops::cuda {

// One group of passes, in one launch.
template <class A>
struct ForwardArguments {
  Heads<const A> q, k, v;
  Heads<A> out;
  float* lse = nullptr;  // [B, H, N]
  const DevicePart* parts = nullptr;
  const HeadPass* passes = nullptr;
  std::int32_t heads = 0;   // passes of the group
  std::int32_t stride = 1;  // from one query of a tile to the next
  std::int32_t lanes = 1;   // of queries, min(stride, length)
  std::int32_t tiles = 0;   // of a lane; set by the launch, like the dividers
  Divider by_heads, by_lanes, by_batch;
  std::int32_t length = 0;
  float scale = 1;
  bool whole_pieces = false;  // widths, strides and addresses allow moves of 16 bytes
  bool even = false;          // PassGroup::even
};

// Tensor cores, widths up to kQk and kV. A: bf16, fp16. long_tiles: where queries are consecutive.
template <class A, int kQk, int kV>
void forward(device::Stream stream, const ForwardArguments<A>& a, bool long_tiles);
// FMA in float, widths up to kWidth.
template <int kWidth>
void forward_float(device::Stream stream, ForwardArguments<float> a);

}  // namespace longstride::ops::cuda
