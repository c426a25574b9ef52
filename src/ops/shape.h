// Shape checks that every operation makes once, before it touches memory.
#pragma once

#include <cstdint>
#include <string_view>

#include "longstride/error.h"
#include "tensor/tensor.h"

namespace longstride::ops {

// Throws "linear: weight is 3x4, want 3x5" unless m is [rows, cols] with memory behind it.
template <class T>
void want_shape(std::string_view op, std::string_view name, Matrix<T> m, std::int64_t rows,
                std::int64_t cols) {
  if (m.rows != rows || m.cols != cols)
    throw invalid_argument(op, ": ", name, " is ", m.rows, "x", m.cols, ", want ", rows, "x", cols);
  if (m.stride < cols)
    throw invalid_argument(op, ": ", name, " has a row stride of ", m.stride, ", want at least ",
                           cols);
  if (m.data == nullptr && rows > 0 && cols > 0)
    throw invalid_argument(op, ": ", name, " of ", rows, "x", cols, " has no memory");
}

template <class T>
void want_size(std::string_view op, std::string_view name, Vector<T> v, std::int64_t size) {
  if (v.size != size)
    throw invalid_argument(op, ": ", name, " has ", v.size, " entries, want ", size);
  if (v.data == nullptr && size > 0)
    throw invalid_argument(op, ": ", name, " of ", size, " entries has no memory");
}

}  // namespace longstride::ops
