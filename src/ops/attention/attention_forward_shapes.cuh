// Tiles of attention forward on tensor cores, two for each pair of padded widths.
#pragma once

#include "ops/attention/attention_forward_launch.h"
#include "ops/attention/attention_forward_mma.cuh"

namespace longstride::ops::cuda {

// Short: 64 queries, for those that see few keys. Long: 128, so that K and V are read half as
// often.
template <int kQk, int kV>
struct ForwardShapes;
template <>
struct ForwardShapes<32, 32> {
  using Short = ForwardShape<32, 32, 1, 4, 64, 2, 4>;
  using Long = ForwardShape<32, 32, 2, 4, 64, 3, 2>;
};
template <>
struct ForwardShapes<64, 64> {
  using Short = ForwardShape<64, 64, 1, 4, 64, 2, 4>;
  using Long = ForwardShape<64, 64, 2, 4, 64, 3, 2>;
};
template <>
struct ForwardShapes<64, 128> {
  using Short = ForwardShape<64, 128, 1, 4, 64, 2, 3>;
  using Long = ForwardShape<64, 128, 1, 8, 64, 2, 1>;
};
template <>
struct ForwardShapes<128, 128> {
  using Short = ForwardShape<128, 128, 1, 4, 64, 2, 2>;
  using Long = ForwardShape<128, 128, 1, 8, 64, 2, 1>;
};
template <>
struct ForwardShapes<256, 256> {
  using Short = ForwardShape<256, 256, 1, 4, 32, 2, 1>;
  using Long = Short;
};

template <class A, class Shape>
void forward_tiles(device::Stream stream, const ForwardArguments<A>& a) {
  launch_forward(stream, forward_mma<A, Shape>, a, Shape::kRows, Shape::kThreads, Shape::kBytes);
}

template <class A, int kQk, int kV>
void forward(device::Stream stream, const ForwardArguments<A>& a, bool long_tiles) {
  using Shapes = ForwardShapes<kQk, kV>;
  if (long_tiles)
    forward_tiles<A, typename Shapes::Long>(stream, a);
  else
    forward_tiles<A, typename Shapes::Short>(stream, a);
}

}  // namespace longstride::ops::cuda
