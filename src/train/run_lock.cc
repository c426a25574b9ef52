#include "train/run_lock.h"

#include <fcntl.h>
#include <sys/file.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>

#include "longstride/error.h"

namespace longstride {

RunLock::RunLock(const std::filesystem::path& run) {
  const auto path = run / "lock";
  file_ = ::open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0644);
  if (file_ < 0) throw environment_error("train: ", path.string(), ": ", std::strerror(errno));
  if (::flock(file_, LOCK_EX | LOCK_NB) == 0) return;
  const int fault = errno;
  ::close(file_);
  if (fault == EWOULDBLOCK)
    throw invalid_argument("train: ", run.string(), " is in use by another process, want one only");
  throw environment_error("train: ", path.string(), ": ", std::strerror(fault));
}

RunLock::~RunLock() { ::close(file_); }

}  // namespace longstride
