// File access with every result checked, and a hook to make it fail.
//
// LONGSTRIDE_FAULT (tests only) = "KIND@N": the N-th write-side call of the process (open for
// writing, write, fsync, close, rename, mkdir, truncate, remove; counted from 1) fails with ENOSPC
// or EIO (KIND enospc, eio), writes half and then fails (short), or kills the process with SIGKILL
// before it is made (kill). "KIND@N+": every call from the N-th on. See fault.h.
//
// Failures of writing are environment errors, "files: cannot write PATH: No space left on device
// (errno 28)"; files that cannot be read are invalid arguments. A failed fsync is never retried.
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

// Makes what is missing of the path, each new folder synced into its parent.
void make_directories(const std::filesystem::path& path);
void rename_checked(const std::filesystem::path& from, const std::filesystem::path& to);
void sync_directory(const std::filesystem::path& path);
// Removes a file or a folder with all in it; nothing there is no error.
void remove_tree(const std::filesystem::path& path);
// Temporary name beside `path`, written, synced, renamed over it, parent synced.
void write_file_atomically(const std::filesystem::path& path, std::string_view content);
// Throws invalid_argument where it cannot be read, is a folder or is longer than `limit`.
std::string read_file(const std::filesystem::path& path,
                      std::int64_t limit = std::int64_t{1} << 30);
void truncate_file(const std::filesystem::path& path, std::int64_t size);
// Free bytes of the file system it lies on, or will lie on when it is made.
std::int64_t free_bytes(const std::filesystem::path& path);

// Temporary names carry their writer: "NAME.tmp-PID". The owner of such a name, else 0.
std::filesystem::path temporary_name(const std::filesystem::path& path);
std::int64_t temporary_owner(std::string_view name, std::string_view mark = ".tmp-");
// Whether a temporary of this owner may be removed: the process is gone, or it is this one.
bool abandoned(std::int64_t owner);
// Removes the regular files NAME.tmp-PID of `folder` that are abandoned; empty name: of any NAME.
void remove_abandoned_files(const std::filesystem::path& folder, std::string_view name = "");

// Text for an error message: one line, control characters as \xNN, cut after `limit` bytes.
std::string printable(std::string_view text, std::size_t limit = 120);

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
