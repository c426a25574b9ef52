// Memory that a thread keeps for its next call: nothing is allocated once a step has run.
#pragma once

#include "tensor/tensor.h"

namespace longstride::ops {

// To be thread_local.
template <class T>
class ScratchOf {
 public:
  // Aligned to 64 bytes; its content is whatever the last call left.
  T* at_least(std::int64_t size) {
    if (values_.size() < size) values_ = Buffer<T>(size);
    return values_.data();
  }

 private:
  Buffer<T> values_;
};
using Scratch = ScratchOf<float>;

}  // namespace longstride::ops
