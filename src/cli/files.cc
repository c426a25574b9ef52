#include "cli/files.h"

#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <sstream>

#include "longstride/error.h"

namespace longstride::cli {

namespace fs = std::filesystem;

std::string read_whole_file(const std::string& path) {
  std::error_code error;
  const fs::file_status status = fs::status(path, error);
  if (status.type() == fs::file_type::not_found)
    throw invalid_argument("file: ", path, " does not exist");
  if (status.type() == fs::file_type::directory)
    throw invalid_argument("file: ", path, " is a folder");
  std::ifstream in(path, std::ios::binary);
  std::ostringstream content;
  if (in && in.peek() != std::ifstream::traits_type::eof()) content << in.rdbuf();
  if (!in.is_open() || in.bad())
    throw environment_error("file: cannot read ", path, ": ", std::strerror(errno));
  return std::move(content).str();
}

void check_writable(const std::string& path) {
  std::error_code error;
  if (fs::is_directory(path, error)) throw invalid_argument("file: ", path, " is a folder");
  const fs::path parent = fs::path(path).has_parent_path() ? fs::path(path).parent_path() : ".";
  if (access(parent.c_str(), W_OK | X_OK) != 0)
    throw environment_error("file: cannot write ", path, ": ", std::strerror(errno));
}

void write_file(const std::string& path, std::string_view content) {
  // A device or pipe is written as it is: a rename would replace it.
  std::error_code error;
  const bool special = fs::exists(path, error) && !fs::is_regular_file(path, error);
  const std::string target = special ? path : text(path, ".tmp-", getpid());
  std::ofstream out(target, std::ios::binary | std::ios::trunc);
  out.write(content.data(), static_cast<std::streamsize>(content.size()));
  out.close();
  const int why = errno;
  if (!out) {
    if (!special) fs::remove(target, error);
    throw environment_error("file: cannot write ", path, ": ", std::strerror(why));
  }
  if (special) return;
  fs::rename(target, path, error);
  if (error) throw environment_error("file: cannot write ", path, ": ", error.message());
}

}  // namespace longstride::cli
