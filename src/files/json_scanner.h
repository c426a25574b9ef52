// Reads the few pieces of JSON that a safetensors header is made of, from any bytes, in one pass
// and without recursion: what to expect where is up to the caller, so depth is no matter. Every
// violation is one invalid_argument with the byte where it stands.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

namespace longstride {

class JsonScanner {
 public:
  // `who` begins the messages: the file, and what of it is read.
  JsonScanner(std::string_view text, std::string who) : text_(text), who_(std::move(who)) {}

  void expect(char c);          // after blanks
  bool take(char c);            // after blanks: consumes c if it is next
  std::string string();         // escapes decoded; strict UTF-8
  std::int64_t whole_number();  // plain digits, no sign, fraction or exponent, < 2^63
  bool at_end() const { return at_ == text_.size(); }
  std::string_view rest() const { return text_.substr(at_); }
  [[noreturn]] void fail(const std::string& what) const;

 private:
  void skip_blanks();
  void escape(std::string& out);
  std::uint32_t four_hex();
  void plain_character(std::string& out);

  std::string_view text_;
  std::string who_;
  std::size_t at_ = 0;
};

// Bytes of the UTF-8 character at the front of `text`; 0: there is none (truncated, overlong, a
// surrogate, beyond U+10FFFF).
std::size_t utf8_length(std::string_view text);

}  // namespace longstride
