// What code on top of CUDA shares: errors, memory, streams, events, graphs. Only for files that are
// built with CUDA (*.cu, *_cuda.cc, cuda/).
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>
#include <memory>
#include <string>
#include <utility>

#include "longstride/error.h"
#include "tensor/tensor.h"

namespace longstride::device {

using Stream = cudaStream_t;

// Throws Error(device), or Error(environment) where memory ran out: "linear 49152x512x2048: an
// illegal memory access was encountered".
void check(cudaError_t status, const std::string& what);

// After a launch; what: kernel and shape, text(...) of them is made only where something failed.
// With LONGSTRIDE_CUDA_SYNC=1 (and while set_synchronous(true)) waits for the kernel, so that a
// fault is told of the kernel that made it. Not waiting while the stream is captured.
bool synchronous();
void set_synchronous(bool on);
template <class... Parts>
void launched(Stream stream, const Parts&... what) {
  cudaError_t status = cudaPeekAtLastError();
  if (status == cudaSuccess && synchronous()) {
    cudaStreamCaptureStatus capture = cudaStreamCaptureStatusNone;
    cudaStreamIsCapturing(stream, &capture);
    if (capture == cudaStreamCaptureStatusNone) status = cudaStreamSynchronize(stream);
  }
  if (status != cudaSuccess) check(status, text(what...));
}

// Device memory from plain cudaMalloc; zero at birth. Moves, never copies.
void* allocate(std::int64_t bytes);
void* allocate_pinned(std::int64_t bytes);  // host memory that copies reach directly, zero at birth
void release(void* block) noexcept;
void release_pinned(void* block) noexcept;

template <class T, void* (*Allocate)(std::int64_t), void (*Release)(void*) noexcept>
class BasicBuffer {
 public:
  BasicBuffer() = default;
  explicit BasicBuffer(std::int64_t size)
      : size_(size),
        data_(size == 0 ? nullptr
                        : static_cast<T*>(Allocate(size * static_cast<std::int64_t>(sizeof(T))))) {}
  T* data() const { return data_.get(); }
  std::int64_t size() const { return size_; }
  std::int64_t bytes() const { return size_ * static_cast<std::int64_t>(sizeof(T)); }
  Vector<T> vector() const { return {data_.get(), size_}; }
  Matrix<T> matrix(std::int64_t rows, std::int64_t cols) const {
    return {data_.get(), rows, cols, cols};
  }

 private:
  struct Free {
    void operator()(T* p) const { Release(p); }
  };
  std::int64_t size_ = 0;
  std::unique_ptr<T, Free> data_;
};
template <class T>
using DeviceBuffer = BasicBuffer<T, allocate, release>;
template <class T>
using PinnedBuffer = BasicBuffer<T, allocate_pinned, release_pinned>;

// Copies in the order of the stream; `from` and `to` may be of host or device.
void copy(Stream stream, void* to, const void* from, std::int64_t bytes);
// `rows` pieces of `bytes` each, which begin so many bytes apart.
void copy_rows(Stream stream, void* to, std::int64_t to_stride, const void* from,
               std::int64_t from_stride, std::int64_t bytes, std::int64_t rows);
void zero(Stream stream, void* to, std::int64_t bytes);
void synchronize(Stream stream);

struct StreamOwner {  // a stream of its own, not ordered with the default one
  StreamOwner();
  ~StreamOwner();
  StreamOwner(const StreamOwner&) = delete;
  StreamOwner& operator=(const StreamOwner&) = delete;
  Stream stream = nullptr;
};

class Event {
 public:
  Event();
  ~Event();
  Event(const Event&) = delete;
  Event& operator=(const Event&) = delete;
  void record(Stream stream);
  void wait() const;                               // the host waits
  double seconds_since(const Event& start) const;  // both reached

 private:
  cudaEvent_t event_ = nullptr;
};

// What body() put on the stream, to be run again at once.
class Graph {
 public:
  Graph() = default;
  ~Graph();
  Graph(const Graph&) = delete;
  Graph& operator=(const Graph&) = delete;
  template <class Body>
  void capture(Stream stream, const Body& body) {
    begin(stream);
    try {
      body();
    } catch (...) {
      abandon(stream);
      throw;
    }
    end(stream);
  }
  bool empty() const { return graph_ == nullptr; }
  void launch(Stream stream) const;

 private:
  static void begin(Stream stream);
  static void abandon(Stream stream) noexcept;
  void end(Stream stream);
  cudaGraphExec_t graph_ = nullptr;
};

// Of the current device.
int multiprocessors();
bool is_hopper();  // compute capability 9.0: kernels for sm_90a may run

}  // namespace longstride::device
