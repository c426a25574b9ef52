// Checks that embedding and its gradient on the GPU share.
#pragma once

#include <cstdint>
#include <vector>

#include "ops/shape.h"

namespace longstride::ops::cuda {

inline void check_tokens(const char* who, const std::uint8_t* tokens, std::int64_t batch,
                         std::int64_t length) {
  if (batch < 0 || length < 0)
    throw invalid_argument(who, ": batch ", batch, " and length ", length, ", want 0 or more");
  constexpr std::int64_t kMost = std::int64_t{1} << 30;  // rows are counted in 32 bits
  if (batch > 0 && length > kMost / batch)
    throw invalid_argument(who, ": batch ", batch, " of length ", length, ", want at most ", kMost,
                           " rows");
  if (tokens == nullptr && batch > 0 && length > 1)
    throw invalid_argument(who, ": no tokens for batch ", batch, " of length ", length);
}

// Every table is [extent, d], and together the axes hold `positions`.
template <class T>
void check_tables(const char* who, Matrix<T> bytes, const std::vector<Matrix<T>>& axes,
                  Vector<T> start, std::int64_t positions) {
  constexpr std::size_t kMostAxes = 4;
  const std::int64_t d = bytes.cols;
  want_shape(who, "bytes", bytes, 256, d);
  want_size(who, "start", start, d);
  if (axes.size() > kMostAxes)
    throw invalid_argument(who, ": ", axes.size(), " axes, want at most ", kMostAxes);
  std::int64_t held = 1;
  for (const Matrix<T>& axis : axes) {
    if (axis.rows < 1)
      throw invalid_argument(who, ": an axis has extent ", axis.rows, ", want 1 or more");
    want_shape(who, "axis table", axis, axis.rows, d);
    if (held < positions) held *= axis.rows;  // stops before it could overflow
  }
  if (held < positions)
    throw invalid_argument(who, ": the axes hold ", held, " positions, want ", positions);
}

// Whether rows are whole packs of four floats.
template <class T>
bool packs_of_four(Matrix<T> m) {
  return m.cols % 4 == 0 && m.stride % 4 == 0 && reinterpret_cast<std::uintptr_t>(m.data) % 16 == 0;
}
template <class T>
bool packs_of_four(Vector<T> v) {
  return v.size % 4 == 0 && reinterpret_cast<std::uintptr_t>(v.data) % 16 == 0;
}

}  // namespace longstride::ops::cuda
