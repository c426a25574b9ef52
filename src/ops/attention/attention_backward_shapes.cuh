// Tiles of attention backward on tensor cores, one for each pair of padded widths.
#pragma once

#include "ops/attention/attention_backward_mma.cuh"

namespace longstride::ops::cuda {

// 99 KiB of shared memory is what a block has on every card since sm_86. 32 keys a warp halve what
// a product reads from shared memory, and need twice the registers.
using Backward32 = BackwardShape<32, 32, 2, 4, 64, 1, 2, true>;
using Backward64 = BackwardShape<64, 64, 2, 4, 64, 1, 2, true>;
using Backward64x128 = BackwardShape<64, 128, 1, 4, 64, 1, 2, true>;
using Backward128 = BackwardShape<128, 128, 1, 4, 32, 1, 2, false>;
using Backward256 = BackwardShape<256, 256, 1, 8, 16, 2, 1, false>;

static_assert(Backward32::kBytes <= 99 * 1024 && Backward64::kBytes <= 99 * 1024 &&
              Backward64x128::kBytes <= 99 * 1024 && Backward128::kBytes <= 99 * 1024 &&
              Backward256::kBytes <= 99 * 1024);

// One launch, of a shape; instantiated in attention_backward_{32,64,...}.cu.
template <class A, class Shape>
void launch_backward(device::Stream stream, const BackwardArguments<A>& arguments,
                     std::int64_t blocks);

}  // namespace longstride::ops::cuda
