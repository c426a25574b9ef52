// Tiles of attention forward on tensor cores, for each pair of padded widths.
#pragma once

#include <algorithm>

#include "ops/attention/attention_forward_launch.h"
#include "ops/attention/attention_forward_mma.cuh"

namespace longstride::ops::cuda {

// Short: 64 queries, for those that see few keys. Long: as many warps as share a tile of keys best.
// Lane: another number of queries, for lanes of columns that leave much of the two others empty (96
// steps of column(128) at 12,288, 32 of column(96) at 3,072).
template <int kQk, int kV>
struct ForwardShapes;
template <>
struct ForwardShapes<32, 32> {
  using Short = ForwardShape<32, 32, 4, 64, 32, 2, 6>;
  using Long = ForwardShape<32, 32, 8, 64, 64, 2, 2>;
  using Lane = ForwardShape<32, 32, 6, 32, 32, 3, 4>;
};
template <>
struct ForwardShapes<64, 64> {
  using Short = ForwardShape<64, 64, 4, 64, 32, 2, 4>;
  using Long = ForwardShape<64, 64, 8, 64, 64, 2, 2>;
  using Lane = ForwardShape<64, 64, 6, 64, 32, 2, 2>;
};
template <>
struct ForwardShapes<64, 128> {
  using Short = ForwardShape<64, 128, 4, 32, 32, 2, 4>;
  using Long = ForwardShape<64, 128, 4, 64, 64, 2, 3>;
  using Lane = ForwardShape<64, 128, 2, 32, 32, 2, 6>;
};
template <>
struct ForwardShapes<128, 128> {
  using Short = ForwardShape<128, 128, 4, 32, 32, 3, 3>;
  using Long = ForwardShape<128, 128, 8, 64, 64, 2, 1>;
  using Lane = Short;
};
template <>
struct ForwardShapes<256, 256> {
  using Short = ForwardShape<256, 256, 4, 32, 32, 2, 1>;
  using Long = Short;
  using Lane = Short;
};

template <class A, class Shape, template <class> class Ranges, bool kWhole>
void forward_tiles(device::Stream stream, const ForwardArguments<A>& a) {
  launch_forward(stream, forward_mma<A, Shape, Ranges, kWhole>, a, Shape::kRows, Shape::kThreads,
                 Shape::kBytes);
}

template <class A, class Shape>
void forward_shape(device::Stream stream, const ForwardArguments<A>& a) {
  if (a.even)
    forward_tiles<A, Shape, OneRange, true>(stream, a);
  else
    forward_tiles<A, Shape, ManyRanges, true>(stream, a);
}

// Rows that the tiles of one lane have.
template <class Shape, class A>
std::int64_t lane_rows(const ForwardArguments<A>& a) {
  return ceil_div(ceil_div(a.length, a.stride), Shape::kRows) * Shape::kRows;
}

template <class A, int kQk, int kV>
void forward(device::Stream stream, const ForwardArguments<A>& a, bool long_tiles) {
  using Short = typename ForwardShapes<kQk, kV>::Short;
  using Long = typename ForwardShapes<kQk, kV>::Long;
  using Lane = typename ForwardShapes<kQk, kV>::Lane;
  if (!a.whole_pieces) return forward_tiles<A, Short, ManyRanges, false>(stream, a);
  const bool columns = a.stride > 1;
  if (columns && lane_rows<Lane>(a) < std::min(lane_rows<Short>(a), lane_rows<Long>(a)))
    forward_tiles<A, Lane, OneRange, true>(stream, a);
  else if (columns ? lane_rows<Long>(a) <= lane_rows<Short>(a) : long_tiles)
    forward_shape<A, Long>(stream, a);
  else
    forward_shape<A, Short>(stream, a);
}

}  // namespace longstride::ops::cuda
