#include <cstdlib>

#include "device/cuda.h"

namespace longstride::device {

namespace {

bool& waits() {
  static bool on = [] {
    const char* set = std::getenv("LONGSTRIDE_CUDA_SYNC");
    return set != nullptr && *set != '\0' && *set != '0';
  }();
  return on;
}

}  // namespace

void check(cudaError_t status, const std::string& what) {
  if (status == cudaSuccess) return;
  cudaGetLastError();  // a fault that the device survived is told once
  const Fault fault = status == cudaErrorMemoryAllocation ? Fault::environment : Fault::device;
  throw Error(fault, text("cuda: ", what, ": ", cudaGetErrorString(status)));
}

bool synchronous() { return waits(); }
void set_synchronous(bool on) { waits() = on; }

void* allocate(std::int64_t bytes) {
  void* block = nullptr;
  check(cudaMalloc(&block, static_cast<std::size_t>(bytes)),
        text(bytes, " bytes of device memory"));
  check(cudaMemset(block, 0, static_cast<std::size_t>(bytes)), "memset");
  check(cudaStreamSynchronize(nullptr), "memset");  // streams of ours are not ordered behind it
  return block;
}

void* allocate_pinned(std::int64_t bytes) {
  void* block = nullptr;
  check(cudaHostAlloc(&block, static_cast<std::size_t>(bytes), cudaHostAllocDefault),
        text(bytes, " bytes of pinned memory"));
  __builtin_memset(block, 0, static_cast<std::size_t>(bytes));
  return block;
}

void release(void* block) noexcept { cudaFree(block); }
void release_pinned(void* block) noexcept { cudaFreeHost(block); }

void copy(Stream stream, void* to, const void* from, std::int64_t bytes) {
  if (bytes == 0) return;
  check(cudaMemcpyAsync(to, from, static_cast<std::size_t>(bytes), cudaMemcpyDefault, stream),
        text("copy of ", bytes, " bytes"));
}

void copy_rows(Stream stream, void* to, std::int64_t to_stride, const void* from,
               std::int64_t from_stride, std::int64_t bytes, std::int64_t rows) {
  check(cudaMemcpy2DAsync(to, static_cast<std::size_t>(to_stride), from,
                          static_cast<std::size_t>(from_stride), static_cast<std::size_t>(bytes),
                          static_cast<std::size_t>(rows), cudaMemcpyDefault, stream),
        text("copy of ", rows, " rows of ", bytes, " bytes"));
}

void zero(Stream stream, void* to, std::int64_t bytes) {
  if (bytes == 0) return;
  check(cudaMemsetAsync(to, 0, static_cast<std::size_t>(bytes), stream),
        text("zeroing ", bytes, " bytes"));
}

void synchronize(Stream stream) { check(cudaStreamSynchronize(stream), "waiting for the device"); }

StreamOwner::StreamOwner() {
  check(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), "stream");
}
StreamOwner::~StreamOwner() { cudaStreamDestroy(stream); }

Event::Event() { check(cudaEventCreate(&event_), "event"); }
Event::~Event() { cudaEventDestroy(event_); }
void Event::record(Stream stream) { check(cudaEventRecord(event_, stream), "event"); }
void Event::wait() const { check(cudaEventSynchronize(event_), "waiting for the device"); }
double Event::seconds_since(const Event& start) const {
  float milliseconds = 0;
  check(cudaEventElapsedTime(&milliseconds, start.event_, event_), "event");
  return milliseconds * 1e-3;
}

Graph::~Graph() {
  if (graph_ != nullptr) cudaGraphExecDestroy(graph_);
}
void Graph::begin(Stream stream) {
  check(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal), "graph");
}
void Graph::abandon(Stream stream) noexcept {
  cudaGraph_t graph = nullptr;
  cudaStreamEndCapture(stream, &graph);
  if (graph != nullptr) cudaGraphDestroy(graph);
  cudaGetLastError();
}
void Graph::end(Stream stream) {
  cudaGraph_t graph = nullptr;
  check(cudaStreamEndCapture(stream, &graph), "graph");
  if (graph_ != nullptr) cudaGraphExecDestroy(graph_);
  graph_ = nullptr;
  const cudaError_t status = cudaGraphInstantiate(&graph_, graph, 0);
  cudaGraphDestroy(graph);
  check(status, "graph");
}
void Graph::launch(Stream stream) const { check(cudaGraphLaunch(graph_, stream), "graph"); }

int multiprocessors() {
  static const int count = [] {
    int device = 0, value = 0;
    check(cudaGetDevice(&device), "device");
    check(cudaDeviceGetAttribute(&value, cudaDevAttrMultiProcessorCount, device), "device");
    return value;
  }();
  return count;
}

bool is_hopper() {
  static const bool hopper = [] {
    int device = 0, major = 0, minor = 0;
    check(cudaGetDevice(&device), "device");
    check(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device), "device");
    check(cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device), "device");
    const char* portable = std::getenv("LONGSTRIDE_CUDA_PORTABLE");
    return major == 9 && minor == 0 && (portable == nullptr || *portable != '1');
  }();
  return hopper;
}

}  // namespace longstride::device
