// The weight gradient of weight_gradient_sm90.cuh, called from the host.
#pragma once

#include <cuda.h>

#include <cstdint>

#include "device/cuda.h"
#include "tensor/tensor.h"

namespace longstride::ops::cuda::weight_gradient {

inline constexpr int kTile = 256;  // of dW, rows and columns, of a cluster

// Tiles of dW times parts of the sum over rows.
struct Split {
  std::int64_t rows;
  int in, out, chunk, parts;  // rows of a part but the last: a multiple of 64

  constexpr int tiles_in() const { return (in + kTile - 1) / kTile; }
  constexpr int tiles_out() const { return (out + kTile - 1) / kTile; }
  constexpr int tiles() const { return tiles_in() * tiles_out(); }
  // Floats of scratch: [part][tile] of dW, then [part][tile] of four sums of dy.
  constexpr std::int64_t part_floats() const { return std::int64_t{tiles()} * kTile * kTile; }
  constexpr std::int64_t sum_floats() const { return std::int64_t{tiles()} * 4 * kTile; }
  constexpr std::int64_t scratch_floats() const { return parts * (part_floats() + sum_floats()); }
};

// dweight [in, out] (+)= x^T dy; dbias (+)= sums over the rows of dy, unless it is null. x, dy:
// maps of boxes of 64 rows. Instances: bf16 and fp16.
template <class A>
void launch(device::Stream stream, const CUtensorMap& x, const CUtensorMap& dy, const Split& split,
            float* scratch, float* dweight, float* dbias, bool add);

}  // namespace longstride::ops::cuda::weight_gradient
