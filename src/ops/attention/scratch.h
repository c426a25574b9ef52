// Working memory of the attention kernels: one block a thread, kept and grown, so that a training
// step allocates nothing once it has run.
#pragma once

#include "tensor/tensor.h"

namespace longstride::ops {

// At least `size` values, aligned to 64 bytes, of this thread; valid until the next call.
template <class T>
T* scratch(std::int64_t size) {
  thread_local Buffer<T> buffer;
  if (buffer.size() < size) buffer = Buffer<T>(size);
  return buffer.data();
}

}  // namespace longstride::ops
