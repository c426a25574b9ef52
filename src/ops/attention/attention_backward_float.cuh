// Launches of attention backward in float.
#pragma once

#include "ops/attention/attention_backward_walk.cuh"

namespace longstride::ops::cuda {

// Widths up to kWidth, kTile keys and queries a tile, whole or not.
template <int kWidth, int kTile>
void launch_backward_float(device::Stream stream, const BackwardArguments<float>& arguments,
                           std::int64_t blocks, bool whole);

}  // namespace longstride::ops::cuda
