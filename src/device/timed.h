// Where the time of a step on the GPU goes: base/profile.h for work put on a stream.
#pragma once

#include "device/cuda.h"

namespace longstride::device {

// What is put on `stream` in the life of this object counts for `name`. Only while profiling() is
// on, and not while the stream is captured; else free. Objects of one stream do not overlap.
class Timed {
 public:
  Timed(Stream stream, const char* name);
  ~Timed();
  Timed(const Timed&) = delete;

 private:
  Stream stream_;
  const char* name_;  // null: off
};

// Waits for the device and adds what Timed objects have seen since the last call to the profile.
void collect_times();

}  // namespace longstride::device
