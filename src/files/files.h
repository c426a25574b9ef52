// File access with every result checked, and a hook to make it fail.
//
// LONGSTRIDE_FAULT (tests only) = "KIND@N": the N-th write-side call of the process (open for
// writing, write, fsync, close, rename, mkdir; counted from 1) fails with ENOSPC or EIO (KIND
// enospc, eio), writes half and then fails (short), or kills the process with SIGKILL before it is
// made (kill). "KIND@N+": every call from the N-th on.
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <string>
#include <string_view>

namespace longstride {

// Writes, fsyncs and closes a new file (or truncates an old one). Throws environment_error.
class FileWriter {
 public:
  explicit FileWriter(const std::filesystem::path& path, bool append = false);
  ~FileWriter();  // closes silently when finish() was not reached
  FileWriter(const FileWriter&) = delete;
  void write(const void* data, std::size_t bytes);
  void write(std::string_view text) { write(text.data(), text.size()); }
  void flush_to_disk();                        // fsync
  void finish();                               // fsync and close, checked
  std::int64_t size() const { return size_; }  // bytes in the file so far

 private:
  std::filesystem::path path_;
  int fd_ = -1;
  std::int64_t size_ = 0;
};

void make_directories(const std::filesystem::path& path);
void rename_checked(const std::filesystem::path& from, const std::filesystem::path& to);
void sync_directory(const std::filesystem::path& path);
// Temporary name beside `path`, written, synced, renamed over it, parent synced.
void write_file_atomically(const std::filesystem::path& path, std::string_view content);
std::string read_file(const std::filesystem::path& path,
                      std::int64_t limit = std::int64_t{1} << 30);
void truncate_file(const std::filesystem::path& path, std::int64_t size);
std::int64_t free_bytes(const std::filesystem::path& path);  // of the file system it lies on

// A file mapped read-only. Throws invalid_argument where it cannot be read or is a folder.
class MappedFile {
 public:
  explicit MappedFile(const std::filesystem::path& path);
  ~MappedFile();
  MappedFile(MappedFile&& other) noexcept;
  MappedFile(const MappedFile&) = delete;
  const std::uint8_t* data() const { return data_; }
  std::int64_t size() const { return size_; }

 private:
  const std::uint8_t* data_ = nullptr;
  std::int64_t size_ = 0;
};

std::string xxh128_hex(const void* data, std::size_t bytes);

}  // namespace longstride
