// Tiles of attention backward on tensor cores, two for each pair of padded widths.
#pragma once

#include "ops/attention/attention_backward_mma.cuh"

namespace longstride::ops::cuda {

// Whole: one tile of keys is all that its queries see; memory is the bound, and what counts is how
// many warps have loads under way. Other: tensor cores are; 32 keys a warp halve what a product
// reads from shared memory, and take twice the registers. 99 KiB of shared memory is what a block
// has on every card since sm_86.
template <int kQk, int kV>
struct BackwardKernels;
template <>
struct BackwardKernels<32, 32> {
  using Whole = BackwardShape<32, 32, 1, 8, 128, 1, 2, false, 1>;
  using Other = BackwardShape<32, 32, 2, 4, 64, 1, 3, false>;
};
template <>
struct BackwardKernels<64, 64> {
  using Whole = BackwardShape<64, 64, 1, 8, 64, 1, 2, false>;
  using Other = BackwardShape<64, 64, 2, 4, 64, 1, 2, false>;
};
template <>
struct BackwardKernels<64, 128> {
  using Whole = BackwardShape<64, 128, 1, 4, 32, 1, 3, false>;
  using Other = BackwardShape<64, 128, 1, 4, 64, 1, 2, true>;
};
template <>
struct BackwardKernels<128, 128> {
  using Whole = BackwardShape<128, 128, 1, 4, 32, 1, 2, false>;
  using Other = Whole;
};
template <>
struct BackwardKernels<256, 256> {
  using Whole = BackwardShape<256, 256, 1, 8, 16, 2, 1, false>;
  using Other = Whole;
};

template <int kQk, int kV>
constexpr bool kFits = BackwardKernels<kQk, kV>::Whole::kBytes <= 99 * 1024 &&
                       BackwardKernels<kQk, kV>::Other::kBytes <= 99 * 1024;
static_assert(kFits<32, 32> && kFits<64, 64> && kFits<64, 128> && kFits<128, 128> &&
              kFits<256, 256>);

// One launch of Whole or Other; instantiated in attention_backward_{32,64,...}.cu.
template <class A, int kQk, int kV>
void launch_backward(device::Stream stream, const BackwardArguments<A>& arguments,
                     std::int64_t blocks, bool whole);

}  // namespace longstride::ops::cuda
