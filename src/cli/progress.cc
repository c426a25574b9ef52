#include "cli/progress.h"

#include <sys/ioctl.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <string_view>

#include "cli/output.h"

namespace longstride::cli {

namespace {

// Columns of the terminal on stderr; 80 where it does not say.
std::size_t columns() {
  winsize size{};
  return ioctl(STDERR_FILENO, TIOCGWINSZ, &size) == 0 && size.ws_col > 0 ? size.ws_col : 80;
}

bool wants_colour() {
  const char* no_color = std::getenv("NO_COLOR");
  const char* term = std::getenv("TERM");
  return (no_color == nullptr || *no_color == '\0') && term != nullptr &&
         std::string_view(term) != "dumb";
}

}  // namespace

Progress::Progress(bool quiet)
    : quiet_(quiet), terminal_(isatty(STDERR_FILENO) == 1), colour_(terminal_ && wants_colour()) {}

Progress::~Progress() {
  if (line_open_) std::fputs("\n", stderr);
}

bool Progress::due() {
  const auto now = Clock::now();
  const auto pause = terminal_ ? std::chrono::milliseconds(100) : std::chrono::milliseconds(2000);
  if (shown_ && now - last_ < pause) return false;
  shown_ = true;
  last_ = now;
  return true;
}

void Progress::clear() {
  if (line_open_) std::fputs("\r\x1b[K", stderr);
  line_open_ = false;
}

void Progress::state(const std::string& line, bool always) {
  if (quiet_ || (!due() && !always)) return;
  if (!terminal_) {
    std::fputs((line + "\n").c_str(), stderr);
    return;
  }
  clear();
  std::fputs(line.substr(0, columns() - 1).c_str(), stderr);
  std::fflush(stderr);
  line_open_ = true;
}

void Progress::note(const std::string& line) {
  if (quiet_) return;
  clear();
  std::fputs((line + "\n").c_str(), stderr);
}

void Progress::warn(const std::string& line) {
  clear();
  std::fputs(("longstride: warning: " + one_line(line) + "\n").c_str(), stderr);
}

std::string Progress::bold(const std::string& text) const {
  return colour_ ? "\x1b[1m" + text + "\x1b[0m" : text;
}

}  // namespace longstride::cli
