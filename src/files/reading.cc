// The reading half of files.h.
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <utility>

#include "files/files.h"
#include "longstride/error.h"

namespace longstride {

namespace {

// A descriptor open for reading, and what it is; closed at the end of the scope.
struct Source {
  int fd = -1;
  struct stat info = {};
  explicit Source(const std::filesystem::path& path, int flags = 0) {
    fd = ::open(path.c_str(), O_RDONLY | O_CLOEXEC | flags);
    if (fd < 0 || ::fstat(fd, &info) < 0) fail(path, std::strerror(errno));
    if (S_ISDIR(info.st_mode)) fail(path, "it is a folder, want a file");
  }
  ~Source() {
    if (fd >= 0) ::close(fd);
  }
  Source(const Source&) = delete;

  [[noreturn]] void fail(const std::filesystem::path& path, const std::string& why) {
    if (fd >= 0) ::close(std::exchange(fd, -1));
    throw invalid_argument("files: cannot read ", printable(path.native(), 400), ": ", why);
  }
};

}  // namespace

std::string read_file(const std::filesystem::path& path, std::int64_t limit) {
  Source source(path);
  std::string content;
  std::string piece(std::size_t{1} << 16, '\0');
  for (;;) {
    const ssize_t got = ::read(source.fd, piece.data(), piece.size());
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) source.fail(path, std::strerror(errno));
    if (got == 0) return content;
    content.append(piece.data(), static_cast<std::size_t>(got));
    if (static_cast<std::int64_t>(content.size()) > limit)
      source.fail(path, text("it has more than ", limit, " bytes"));
  }
}

MappedFile::MappedFile(const std::filesystem::path& path) {
  Source source(path, O_NONBLOCK);  // a pipe without a writer is refused, not waited for
  if (!S_ISREG(source.info.st_mode)) source.fail(path, "it is not a regular file");
  size_ = source.info.st_size;
  if (size_ == 0) return;
  void* at = ::mmap(nullptr, static_cast<std::size_t>(size_), PROT_READ, MAP_PRIVATE, source.fd, 0);
  if (at == MAP_FAILED) source.fail(path, std::strerror(errno));
  data_ = static_cast<const std::uint8_t*>(at);
}

MappedFile::~MappedFile() {
  if (data_) ::munmap(const_cast<std::uint8_t*>(data_), static_cast<std::size_t>(size_));
}

MappedFile::MappedFile(MappedFile&& other) noexcept
    : data_(std::exchange(other.data_, nullptr)), size_(std::exchange(other.size_, 0)) {}

}  // namespace longstride
