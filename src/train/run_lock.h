// One process a run folder: RUN/lock is held (flock) while training; the kernel lets go of it when
// the process ends, however it ends.
#pragma once

#include <filesystem>

namespace longstride {

class RunLock {
 public:
  // Throws invalid_argument where another process holds it.
  explicit RunLock(const std::filesystem::path& run);
  ~RunLock();
  RunLock(const RunLock&) = delete;

 private:
  int file_ = -1;
};

}  // namespace longstride
