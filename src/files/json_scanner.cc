#include "files/json_scanner.h"

#include "files/files.h"
#include "longstride/error.h"

namespace longstride {

namespace {

unsigned byte_of(char c) { return static_cast<unsigned char>(c); }

void append_utf8(std::string& out, std::uint32_t code) {
  const auto put = [&](std::uint32_t byte) { out += static_cast<char>(byte); };
  if (code < 0x80) {
    put(code);
  } else if (code < 0x800) {
    put(0xc0 | code >> 6), put(0x80 | (code & 0x3f));
  } else if (code < 0x10000) {
    put(0xe0 | code >> 12), put(0x80 | (code >> 6 & 0x3f)), put(0x80 | (code & 0x3f));
  } else {
    put(0xf0 | code >> 18), put(0x80 | (code >> 12 & 0x3f));
    put(0x80 | (code >> 6 & 0x3f)), put(0x80 | (code & 0x3f));
  }
}

}  // namespace

std::size_t utf8_length(std::string_view text) {
  if (text.empty()) return 0;
  const unsigned lead = byte_of(text[0]);
  if (lead < 0x80) return 1;
  const std::size_t length = lead >= 0xf0 ? 4 : lead >= 0xe0 ? 3 : 2;
  if (lead < 0xc2 || lead > 0xf4 || text.size() < length) return 0;
  for (std::size_t i = 1; i < length; ++i)
    if ((byte_of(text[i]) & 0xc0) != 0x80) return 0;
  // The second byte tells the overlong forms, the surrogates and what lies beyond U+10FFFF.
  const unsigned second = byte_of(text[1]);
  const bool bad = (lead == 0xe0 && second < 0xa0) || (lead == 0xed && second > 0x9f) ||
                   (lead == 0xf0 && second < 0x90) || (lead == 0xf4 && second > 0x8f);
  return bad ? 0 : length;
}

void JsonScanner::fail(const std::string& what) const {
  throw invalid_argument(who_, ": byte ", at_, " of the header: ", what);
}

void JsonScanner::skip_blanks() {
  while (at_ < text_.size() &&
         (text_[at_] == ' ' || text_[at_] == '\n' || text_[at_] == '\t' || text_[at_] == '\r'))
    ++at_;
}

bool JsonScanner::take(char c) {
  skip_blanks();
  if (at_ == text_.size() || text_[at_] != c) return false;
  ++at_;
  return true;
}

void JsonScanner::expect(char c) {
  if (take(c)) return;
  const std::string found =
      at_ == text_.size() ? "the end" : text("'", printable(text_.substr(at_, 1)), "'");
  fail(text("found ", found, ", want '", c, "'"));
}

std::string JsonScanner::string() {
  expect('"');
  std::string out;
  for (;;) {
    if (at_ == text_.size()) fail("a string does not end");
    if (text_[at_] == '"') break;
    if (text_[at_] == '\\') {
      escape(out);
    } else {
      plain_character(out);
    }
  }
  ++at_;
  return out;
}

void JsonScanner::plain_character(std::string& out) {
  if (byte_of(text_[at_]) < 0x20) fail("a control character in a string");
  const std::size_t length = utf8_length(text_.substr(at_, 4));
  if (length == 0) fail("not UTF-8");
  out.append(text_, at_, length);
  at_ += length;
}

void JsonScanner::escape(std::string& out) {
  constexpr std::string_view kEscaped = "\"\\/bfnrt", kMeant = "\"\\/\b\f\n\r\t";
  if (++at_ == text_.size()) fail("a string does not end");
  const char c = text_[at_++];
  if (const auto which = kEscaped.find(c); which != kEscaped.npos) {
    out += kMeant[which];
    return;
  }
  if (c != 'u') fail("unknown escape in a string");
  std::uint32_t code = four_hex();
  if (code >= 0xd800 && code < 0xdc00) {
    if (text_.substr(at_, 2) != "\\u") fail("half of a surrogate pair");
    at_ += 2;
    const std::uint32_t low = four_hex();
    if (low < 0xdc00 || low > 0xdfff) fail("half of a surrogate pair");
    code = 0x10000 + ((code - 0xd800) << 10) + (low - 0xdc00);
  } else if (code >= 0xdc00 && code < 0xe000) {
    fail("half of a surrogate pair");
  }
  append_utf8(out, code);
}

std::uint32_t JsonScanner::four_hex() {
  std::uint32_t code = 0;
  for (int i = 0; i < 4; ++i, ++at_) {
    const char c = at_ < text_.size() ? text_[at_] : ' ';
    const bool digit = c >= '0' && c <= '9';
    const char low = static_cast<char>(c | 0x20);
    if (!digit && (low < 'a' || low > 'f')) fail("want four hexadecimal digits");
    code = code * 16 + static_cast<std::uint32_t>(digit ? c - '0' : low - 'a' + 10);
  }
  return code;
}

std::int64_t JsonScanner::whole_number() {
  skip_blanks();
  const std::size_t start = at_;
  std::int64_t value = 0;
  for (; at_ < text_.size() && text_[at_] >= '0' && text_[at_] <= '9'; ++at_)
    if (__builtin_mul_overflow(value, std::int64_t{10}, &value) ||
        __builtin_add_overflow(value, std::int64_t{text_[at_] - '0'}, &value))
      fail("a number is too large");
  const bool fraction =
      at_ < text_.size() && std::string_view(".eE").find(text_[at_]) != std::string_view::npos;
  const bool zeros = at_ - start > 1 && text_[start] == '0';
  if (at_ == start || fraction || zeros) fail("want a whole number, not negative");
  return value;
}

}  // namespace longstride
