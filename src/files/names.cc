// Temporary names and printable text of files.h.
#include <unistd.h>

#include <cerrno>
#include <charconv>
#include <csignal>
#include <system_error>

#include "files/files.h"

namespace longstride {

namespace fs = std::filesystem;

fs::path temporary_name(const fs::path& path) {
  fs::path name = path;
  return name += ".tmp-" + std::to_string(::getpid());
}

std::int64_t temporary_owner(std::string_view name, std::string_view mark) {
  const auto at = name.rfind(mark);
  if (at == name.npos || at == 0) return 0;
  const std::string_view digits = name.substr(at + mark.size());
  std::int32_t owner = 0;
  const auto [end, bad] = std::from_chars(digits.data(), digits.data() + digits.size(), owner);
  const bool whole = bad == std::errc() && end == digits.data() + digits.size();
  return whole && owner > 0 ? owner : 0;
}

bool abandoned(std::int64_t owner) {
  if (owner <= 0) return false;
  return owner == ::getpid() || (::kill(static_cast<pid_t>(owner), 0) < 0 && errno == ESRCH);
}

void remove_abandoned_files(const fs::path& folder, std::string_view name) {
  std::error_code stop;
  for (fs::directory_iterator entry(folder.empty() ? "." : folder, stop), end;
       !stop && entry != end; entry.increment(stop)) {
    const std::string file = entry->path().filename().native();
    if (!fs::is_regular_file(entry->symlink_status(stop)) || !abandoned(temporary_owner(file)))
      continue;
    if (name.empty() || file.substr(0, file.rfind(".tmp-")) == name) remove_tree(entry->path());
  }
}

std::string printable(std::string_view text, std::size_t limit) {
  constexpr char kDigits[] = "0123456789abcdef";
  std::string line;
  for (const char c : text) {
    const auto byte = static_cast<unsigned char>(c);
    // Cut before a character, not inside its up to four UTF-8 bytes.
    const bool inside = (byte & 0xc0) == 0x80 && line.size() < limit + 3;
    if (line.size() >= limit && !inside) return line + "...";
    if (byte >= 0x20 && byte != 0x7f) {
      line += c;
    } else {
      line += "\\x";
      line += kDigits[byte >> 4];
      line += kDigits[byte & 15];
    }
  }
  return line;
}

}  // namespace longstride
