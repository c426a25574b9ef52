// Where the time of a step goes: seconds by name, summed over calls. Off by default, and then free.
#pragma once

#include <chrono>

namespace longstride {

// Adds the life of this object to `name`, a string that outlives the program's profile. For the
// thread that runs the steps: objects do not overlap.
class Timed {
 public:
  explicit Timed(const char* name);
  ~Timed();
  Timed(const Timed&) = delete;

 private:
  const char* name_;  // null: off
  std::chrono::steady_clock::time_point begin_;
};

bool profiling();  // whether times are being taken
void add_time(const char* name, double seconds);

}  // namespace longstride
