#include "files/files.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <vector>

#include "files/fault.h"
#include "longstride/error.h"

namespace longstride {

namespace {

namespace fs = std::filesystem;

[[noreturn]] void fail(const char* what, const fs::path& path, int error) {
  throw environment_error("files: cannot ", what, " ", printable(path.native(), 400), ": ",
                          std::strerror(error), " (errno ", error, ")");
}

// One write-side call: the hook first, then `call`, again where a signal interrupted it. Returns
// errno, 0 for success.
template <class Call>
int write_side(Call&& call) {
  if (const Strike strike = next_write_call(); strike.error) return strike.error;
  while (call() < 0)
    if (errno != EINTR) return errno;
  return 0;
}

fs::path parent_of(const fs::path& path) {
  const fs::path parent = path.parent_path();
  return parent.empty() ? fs::path(".") : parent;
}

}  // namespace

FileWriter::FileWriter(const fs::path& path, bool append) : path_(path) {
  const int flags = O_WRONLY | O_CREAT | O_CLOEXEC | (append ? O_APPEND : O_TRUNC);
  const int error = write_side([&] { return fd_ = ::open(path.c_str(), flags, 0644); });
  if (error) fail("open for writing", path, error);
  struct stat info = {};
  if (append && ::fstat(fd_, &info) == 0) size_ = info.st_size;
}

FileWriter::~FileWriter() {
  if (fd_ >= 0) ::close(fd_);
}

void FileWriter::write(const void* data, std::size_t bytes) {
  const char* at = static_cast<const char*>(data);
  const Strike strike = next_write_call();
  std::size_t left = strike.error ? (strike.half ? bytes / 2 : 0) : bytes;
  while (left > 0) {
    const ssize_t written = ::write(fd_, at, std::min<std::size_t>(left, std::size_t{1} << 30));
    if (written < 0 && errno == EINTR) continue;
    if (written < 0) fail("write", path_, errno);
    at += written, left -= static_cast<std::size_t>(written), size_ += written;
  }
  if (strike.error) fail("write", path_, strike.error);
}

void FileWriter::flush_to_disk() {
  if (const int error = write_side([&] { return ::fsync(fd_); })) fail("fsync", path_, error);
}

void FileWriter::finish() {
  flush_to_disk();
  // The descriptor is gone after close() whatever it returns, so it is never closed twice.
  const Strike strike = next_write_call();
  const int closed = ::close(fd_);
  const int error = strike.error ? strike.error : closed < 0 ? errno : 0;
  fd_ = -1;
  if (error) fail("close", path_, error);
}

void make_directories(const fs::path& path) {
  std::error_code unknown;
  if (path.empty() || fs::is_directory(path, unknown)) return;
  const fs::path parent = parent_of(path);
  if (parent != path) make_directories(parent);
  const int error = write_side([&] { return ::mkdir(path.c_str(), 0755); });
  if (error == EEXIST && fs::is_directory(path, unknown)) return;
  if (error) fail("make folder", path, error);
  sync_directory(parent);
}

void rename_checked(const fs::path& from, const fs::path& to) {
  const int error = write_side([&] { return ::rename(from.c_str(), to.c_str()); });
  if (error) fail("rename to", to, error);
}

void sync_directory(const fs::path& path) {
  const int fd = ::open(path.empty() ? "." : path.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (fd < 0) fail("open folder", path, errno);
  const int error = write_side([&] { return ::fsync(fd); });
  ::close(fd);
  // Some file systems have no notion of syncing a folder and say so with EINVAL.
  if (error && error != EINVAL) fail("fsync folder", path, error);
}

void remove_tree(const fs::path& path) {
  std::error_code ignored;
  const fs::file_status status = fs::symlink_status(path, ignored);
  if (!fs::exists(status)) return;
  const bool folder = fs::is_directory(status);
  if (folder) {
    std::vector<fs::path> inside;
    for (fs::directory_iterator entry(path, ignored), end; !ignored && entry != end;
         entry.increment(ignored))
      inside.push_back(entry->path());
    for (const fs::path& entry : inside) remove_tree(entry);
  }
  const int error =
      write_side([&] { return folder ? ::rmdir(path.c_str()) : ::unlink(path.c_str()); });
  if (error && error != ENOENT) fail("remove", path, error);
}

void write_file_atomically(const fs::path& path, std::string_view content) {
  const fs::path temporary = temporary_name(path);
  try {
    FileWriter out(temporary);
    out.write(content);
    out.finish();
    rename_checked(temporary, path);
  } catch (const Error&) {
    ::unlink(temporary.c_str());
    throw;
  }
  sync_directory(parent_of(path));
}

void truncate_file(const fs::path& path, std::int64_t size) {
  const int error = write_side([&] { return ::truncate(path.c_str(), size); });
  if (error) fail("truncate", path, error);
}

std::int64_t free_bytes(const fs::path& path) {
  fs::path there = path.empty() ? fs::path(".") : path;
  std::error_code ignored;
  while (!fs::exists(there, ignored) && parent_of(there) != there) there = parent_of(there);
  struct statvfs info = {};
  if (::statvfs(there.c_str(), &info) < 0) fail("ask the free space of", there, errno);
  return static_cast<std::int64_t>(info.f_bavail) * static_cast<std::int64_t>(info.f_frsize);
}

}  // namespace longstride
