// y = x W + b for 1 to 16 rows: what decoding does with a batch of sequences, one new position
// each.
//
//   y[r, n] = act?(sum_k x[r, k] W[k, n] + b[n])       act(x) = x sigmoid(1.702 x)
//
// Sums are float, in an order that depends on the shape of W alone: a row has the same bits
// whatever rows are beside it and however many.
#pragma once

#include <cstdint>

#include "device/cuda.h"
#include "tensor/bf16.h"
#include "tensor/tensor.h"

namespace longstride::ops::cuda {

inline constexpr std::int64_t kFewRows = 16;

// W is cut into tiles of kFewColumns columns, and these over k into pieces, so that some kFewBlocks
// blocks of threads read it at once.
inline constexpr std::int64_t kFewColumns = 64, kFewDepth = 512, kFewBlocks = 512;
struct FewRowsCut {
  std::int64_t tiles = 1, pieces = 1;
  std::int64_t depth = 0;  // k of a piece, a multiple of 16 and at most kFewDepth
};
FewRowsCut cut_few_rows(std::int64_t in, std::int64_t out);
std::int64_t few_rows_partials(std::int64_t most_in, std::int64_t most_out);

// What the pieces meet in. For one stream at a time.
class FewRowsScratch {
 public:
  // For every map of at most these sizes.
  FewRowsScratch(std::int64_t most_in, std::int64_t most_out);
  std::int64_t bytes() const { return partial.bytes() + tickets.bytes(); }

  device::DeviceBuffer<float> partial;     // few_rows_partials(): [pieces, 16, out]
  device::DeviceBuffer<unsigned> tickets;  // [tiles], zero between calls
};

template <class A, class Y = A>
struct FewRows {
  Matrix<const A> x, weight;
  Vector<const float> bias;  // [out], or empty
  Matrix<Y> y;
  bool activation = false;
};
// <float, float>, <bf16, bf16>, <bf16, float>
template <class A, class Y>
void few_rows(FewRowsScratch& scratch, device::Stream stream, const FewRows<A, Y>& op);

}  // namespace longstride::ops::cuda
