#include "cli/output.h"

#include <fmt/format.h>

#include <cerrno>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <vector>

#include "longstride/error.h"

namespace longstride::cli {

namespace {

// Bytes of the UTF-8 character that starts `text`; 0 where none does.
std::size_t utf8_length(std::string_view text) {
  const auto byte = [&](std::size_t i) { return static_cast<unsigned char>(text[i]); };
  const unsigned char first = byte(0);
  if (first < 0x80) return 1;
  const std::size_t length = first >= 0xf0 ? 4 : first >= 0xe0 ? 3 : 2;
  if (first < 0xc2 || first > 0xf4 || text.size() < length) return 0;
  for (std::size_t i = 1; i < length; ++i)
    if ((byte(i) & 0xc0) != 0x80) return 0;
  // Overlong forms, surrogates, beyond U+10FFFF.
  if ((first == 0xe0 && byte(1) < 0xa0) || (first == 0xed && byte(1) > 0x9f) ||
      (first == 0xf0 && byte(1) < 0x90) || (first == 0xf4 && byte(1) > 0x8f))
    return 0;
  return length;
}

std::string escaped(unsigned char c) {
  if (c == '\n') return "\\n";
  if (c == '\r') return "\\r";
  if (c == '\t') return "\\t";
  return fmt::format("\\x{:02x}", c);
}

}  // namespace

void print(std::string_view bytes) {
  const bool good = std::fwrite(bytes.data(), 1, bytes.size(), stdout) == bytes.size() &&
                    std::fflush(stdout) == 0;
  if (good) return;
  const int why = errno;
  if (why == EPIPE) throw ClosedPipe{};
  throw environment_error("stdout: cannot write: ", std::strerror(why));
}

void print_json(const nlohmann::ordered_json& document) {
  print(document.dump(-1, ' ', false, nlohmann::ordered_json::error_handler_t::replace) + "\n");
}

std::string one_line(std::string_view message) {
  std::vector<std::string> shown;  // one entry a character of the input
  while (!message.empty()) {
    const std::size_t length = utf8_length(message);
    const auto first = static_cast<unsigned char>(message[0]);
    const bool control = length == 1 && (first < 0x20 || first == 0x7f);
    const bool c1_control =
        length == 2 && first == 0xc2 && static_cast<unsigned char>(message[1]) < 0xa0;
    shown.push_back(length == 0 || control ? escaped(first)
                    : c1_control           ? escaped(static_cast<unsigned char>(message[1]))
                                           : std::string(message.substr(0, length)));
    message.remove_prefix(std::max<std::size_t>(length, 1));
  }
  // The end says what was wanted, so it is the middle that goes.
  std::string head, tail;
  std::size_t next = 0, last = shown.size();
  while (next < last && head.size() + shown[next].size() <= kLongestLine * 2 / 3)
    head += shown[next++];
  while (last > next && tail.size() + shown[last - 1].size() <= kLongestLine / 3 - 3)
    tail.insert(0, shown[--last]);
  return next == last ? head + tail : head + "..." + tail;
}

std::string with_commas(std::int64_t count) {
  std::string digits = std::to_string(count);
  for (std::int64_t i = static_cast<std::int64_t>(digits.size()) - 3; i > (count < 0); i -= 3)
    digits.insert(static_cast<std::size_t>(i), ",");
  return digits;
}

std::string with_unit(double value) {
  if (!std::isfinite(value)) return fmt::format("{}", value);
  const char* unit = " kMGTP";
  while (std::abs(value) >= 999.5 && unit[1] != '\0') value /= 1000, ++unit;
  const int decimals = std::abs(value) < 9.995 ? 2 : std::abs(value) < 99.95 ? 1 : 0;
  return fmt::format("{:.{}f}{}", value, decimals, *unit == ' ' ? "" : fmt::format(" {}", *unit));
}

std::string as_bytes(std::int64_t bytes) {
  const std::string number = with_unit(static_cast<double>(bytes));
  return number.back() >= 'A' ? number + "B" : number + " B";
}

std::string as_duration(double seconds) {
  if (!std::isfinite(seconds) || seconds < 0 || seconds > 1e9) return "?";
  const auto whole = static_cast<std::int64_t>(std::llround(seconds));
  if (whole >= 3600)
    return fmt::format("{}:{:02}:{:02}", whole / 3600, whole / 60 % 60, whole % 60);
  return fmt::format("{}:{:02}", whole / 60, whole % 60);
}

std::string recompute_text(const Recompute& again) {
  if (again.segment > 0) return fmt::format("on (segments of {} blocks)", again.segment);
  if (again.inner > 0)
    return fmt::format("on (q, k, v of {} blocks, ff1 of {})", again.qkv, again.inner);
  return again.qkv > 0 ? fmt::format("on (q, k, v of {} blocks)", again.qkv) : "off";
}

nlohmann::ordered_json recompute_json(const Recompute& again) {
  return {{"on", static_cast<bool>(again)},
          {"segment", again.segment},
          {"qkv", again.qkv},
          {"inner", again.inner}};
}

}  // namespace longstride::cli
