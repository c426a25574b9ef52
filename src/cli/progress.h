// Log and progress on stderr: one line rewritten in place on a terminal, plain lines elsewhere.
#pragma once

#include <chrono>
#include <string>

namespace longstride::cli {

class Progress {
 public:
  explicit Progress(bool quiet);
  ~Progress();  // leaves the terminal on a fresh line

  // A passing state. On a terminal at most ten a second are shown, in place; elsewhere one line in
  // two seconds. `always`: show this one (the last).
  void state(const std::string& line, bool always = false);

  // A line that stays.
  void note(const std::string& line);

  // As note(), also when quiet: warnings.
  void warn(const std::string& line);

  // `text` in bold where stderr is a terminal with colour (NO_COLOR unset).
  std::string bold(const std::string& text) const;

 private:
  using Clock = std::chrono::steady_clock;
  bool due();
  void clear();

  bool quiet_, terminal_, colour_;
  bool line_open_ = false;
  bool shown_ = false;
  Clock::time_point last_;
};

}  // namespace longstride::cli
