// The file of blocks(file), a text:
//
//   file   = { skip } "block" B newline { row newline }
//   row    = { key block }             one row a query block, in order; may be empty
//   skip   = lines of blanks only, before the block line
//
// B is the size of a block in positions. Row q lists the key blocks that query block q sees: whole
// numbers k <= q in any order, each once, apart by blanks; inside a block pair the rule j <= i
// still holds. An empty line is a query block that sees nothing. "#" begins a comment up to the end
// of the line; a line that holds only a comment is no row. Query blocks behind the last row see
// nothing.
#include <algorithm>
#include <charconv>
#include <fstream>

#include "longstride/error.h"
#include "pattern/parts.h"

namespace longstride {

namespace {

constexpr std::size_t kMaxFile = std::size_t{1} << 26;
constexpr std::string_view kBlanks = " \t\r";

class Reader {
 public:
  explicit Reader(const std::string& name) : name_(name) {}

  Blocks read(std::string_view content) {
    std::vector<std::vector<std::int64_t>> rows;
    Blocks mask{name_, 0, nullptr};
    while (!content.empty()) {
      const std::size_t end = std::min(content.find('\n'), content.size());
      const std::string_view raw = content.substr(0, end);
      content.remove_prefix(std::min(end + 1, content.size()));
      ++line_;
      const std::vector<std::string_view> words = split(raw.substr(0, raw.find('#')));
      const bool only_comment = words.empty() && raw.find('#') != std::string_view::npos;
      if (only_comment || (words.empty() && mask.block == 0)) continue;
      if (mask.block == 0)
        mask.block = block_size(words);
      else
        rows.push_back(row(words, static_cast<std::int64_t>(rows.size())));
    }
    if (mask.block == 0) fail("is empty, want first a line \"block 32\"");
    mask.rows = std::make_shared<const std::vector<std::vector<std::int64_t>>>(std::move(rows));
    return mask;
  }

 private:
  static std::vector<std::string_view> split(std::string_view line) {
    std::vector<std::string_view> words;
    for (std::size_t at = line.find_first_not_of(kBlanks); at != std::string_view::npos;) {
      const std::size_t end = std::min(line.find_first_of(kBlanks, at), line.size());
      words.push_back(line.substr(at, end - at));
      at = line.find_first_not_of(kBlanks, end);
    }
    return words;
  }

  std::int64_t block_size(const std::vector<std::string_view>& words) const {
    if (words.size() != 2 || words[0] != "block")
      fail(text("starts with ", quoted(words[0]), ", want first a line \"block 32\""));
    const std::int64_t size = number(words[1]);
    if (size < 1) fail("block is 0, want at least 1");
    return size;
  }

  std::vector<std::int64_t> row(const std::vector<std::string_view>& words, std::int64_t q) const {
    std::vector<std::int64_t> keys;
    for (const std::string_view word : words) {
      const std::int64_t k = number(word);
      if (k > q) fail(text("query block ", q, " names key block ", k, ", want at most ", q));
      keys.push_back(k);
    }
    std::sort(keys.begin(), keys.end());
    const auto twice = std::adjacent_find(keys.begin(), keys.end());
    if (twice != keys.end()) fail(text("query block ", q, " names key block ", *twice, " twice"));
    return keys;
  }

  std::int64_t number(std::string_view word) const {
    std::int64_t value = 0;
    const char* const last = word.data() + word.size();
    const auto [end, error] = std::from_chars(word.data(), last, value);
    if (error != std::errc() || end != last || value < 0 || value >= kNumberLimit)
      fail(text(quoted(word), " is no number from 0 to ", kNumberLimit - 1));
    return value;
  }

  [[noreturn]] void fail(const std::string& what) const {
    throw invalid_argument("pattern: blocks file ", quoted(name_), ", line ", line_, ": ", what);
  }

  std::string name_;
  std::int64_t line_ = 0;
};

}  // namespace

Blocks read_blocks(const std::string& file) {
  std::ifstream in(file, std::ios::binary);
  std::string content;
  std::vector<char> piece(std::size_t{1} << 16);
  while (in && content.size() <= kMaxFile) {
    in.read(piece.data(), static_cast<std::streamsize>(piece.size()));
    content.append(piece.data(), static_cast<std::size_t>(in.gcount()));
  }
  if (content.size() > kMaxFile)
    throw invalid_argument("pattern: blocks file ", quoted(file), " has more than ", kMaxFile,
                           " bytes");
  if (!in.eof()) throw invalid_argument("pattern: cannot read the blocks file ", quoted(file));
  return Reader(file).read(content);
}

}  // namespace longstride
