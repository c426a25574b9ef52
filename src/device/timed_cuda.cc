#include "device/timed.h"

#include <deque>
#include <utility>
#include <vector>

#include "base/profile.h"

namespace longstride::device {

namespace {

struct Span {
  Event begin, end;
  const char* name = nullptr;
};

// Of the one thread that runs the steps. Events are kept for the next step.
std::deque<Span> spans;
std::size_t used = 0;

bool captured(Stream stream) {
  cudaStreamCaptureStatus status = cudaStreamCaptureStatusNone;
  check(cudaStreamIsCapturing(stream, &status), "profile");
  return status != cudaStreamCaptureStatusNone;
}

}  // namespace

Timed::Timed(Stream stream, const char* name)
    : stream_(stream), name_(profiling() && !captured(stream) ? name : nullptr) {
  if (!name_) return;
  if (used == spans.size()) spans.emplace_back();
  spans[used].name = name_;
  spans[used].begin.record(stream_);
}

Timed::~Timed() {
  if (!name_) return;
  spans[used].end.record(stream_);
  ++used;
}

void collect_times() {
  if (used > 0) spans[used - 1].end.wait();
  for (std::size_t s = 0; s < used; ++s)
    add_time(spans[s].name, spans[s].end.seconds_since(spans[s].begin));
  used = 0;
}

}  // namespace longstride::device
