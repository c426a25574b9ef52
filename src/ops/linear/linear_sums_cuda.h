// What the products of linear_cuda.h need beside them: sums in a fixed order, and biases in the
// type that the library wants.
#pragma once

#include <cstdint>

#include "device/cuda.h"
#include "tensor/tensor.h"

namespace longstride::ops::cuda {

// out[i] (+)= sum_p parts[p * size + i], p < count in a fixed order.
void sum_parts(device::Stream stream, const float* parts, std::int64_t count, std::int64_t size,
               float* out, bool add);

// parts[c * cols + n] = sum over the rows r of chunk c of m[r, n]; returns the number of chunks,
// such that all of them take at most `room` floats.
template <class A>
std::int64_t sum_rows(device::Stream stream, Matrix<const A> m, float* parts, std::int64_t room);

// to[i] = A(from[i])
template <class A>
void convert(device::Stream stream, Vector<const float> from, A* to);

}  // namespace longstride::ops::cuda
