// Views of memory that somebody else owns, and the one owner.
//
// A view is plain data: pointer, extents, strides in elements. Indices are 64 bits wide; there is
// no int offset anywhere in this project.
#pragma once

#include <cstdint>
#include <memory>
#include <type_traits>

#include "tensor/memory.h"

namespace longstride {

template <class T>
struct Vector {
  T* data = nullptr;
  std::int64_t size = 0;

  T& operator[](std::int64_t i) const { return data[i]; }
  bool empty() const { return size == 0; }
  operator Vector<const T>() const requires(!std::is_const_v<T>) { return {data, size}; }
};

// Row-major [rows, cols]; `stride` elements from one row to the next (>= cols).
template <class T>
struct Matrix {
  T* data = nullptr;
  std::int64_t rows = 0, cols = 0, stride = 0;

  T* row(std::int64_t r) const { return data + r * stride; }
  bool empty() const { return data == nullptr; }
  bool contiguous() const { return stride == cols; }
  operator Matrix<const T>() const requires(!std::is_const_v<T>) {
    return {data, rows, cols, stride};
  }
};

template <class T>
Matrix<T> matrix(T* data, std::int64_t rows, std::int64_t cols) {
  return {data, rows, cols, cols};
}

// The head view [batch, length, heads, width] of a matrix [batch * length, row_stride], in place.
template <class T>
struct Heads {
  T* data = nullptr;
  std::int64_t batch = 0, length = 0, heads = 0, width = 0;
  std::int64_t row_stride = 0;  // elements from one position to the next

  T* at(std::int64_t b, std::int64_t i, std::int64_t h) const {
    return data + (b * length + i) * row_stride + h * width;
  }
  operator Heads<const T>() const requires(!std::is_const_v<T>) {
    return {data, batch, length, heads, width, row_stride};
  }
};

// Owned memory, aligned to 64 bytes, zero at birth. Moves, never copies.
template <class T>
class Buffer {
 public:
  Buffer() = default;
  explicit Buffer(std::int64_t size)
      : size_(size),
        data_(static_cast<T*>(allocate_zeroed(size * static_cast<std::int64_t>(sizeof(T))))) {}

  T* data() const { return data_.get(); }
  std::int64_t size() const { return size_; }
  T& operator[](std::int64_t i) const { return data_.get()[i]; }
  Vector<T> vector() const { return {data_.get(), size_}; }
  Matrix<T> matrix(std::int64_t rows, std::int64_t cols) const {
    return {data_.get(), rows, cols, cols};
  }

 private:
  struct Free {
    void operator()(T* p) const { release(p); }
  };

  std::int64_t size_ = 0;
  std::unique_ptr<T, Free> data_;
};

}  // namespace longstride
