// The grammar of pattern.h, read left to right. No recursion, and limits on everything that a spec
// could make large.
#include <algorithm>
#include <array>
#include <charconv>
#include <numeric>

#include "longstride/error.h"
#include "longstride/pattern.h"
#include "pattern/parts.h"

namespace longstride {

namespace {

constexpr std::size_t kMaxSpec = 65536, kMaxParts = 16, kMaxKinds = 1024;

using Numbers = std::vector<std::uint64_t>;

// How a name is written and what it becomes. blocks(file) is read apart.
struct Form {
  std::string_view name, usage;
  std::size_t least, most;  // arguments
  std::vector<Part> (*make)(const Numbers&);
};

std::int64_t at(const Numbers& n, std::size_t index, std::int64_t otherwise) {
  return index < n.size() ? static_cast<std::int64_t>(n[index]) : otherwise;
}

constexpr std::int64_t kRandomBlock = 32;

template <class... Parts>
std::vector<Part> list(const Parts&... parts) {
  std::vector<Part> out;
  out.reserve(sizeof...(parts));
  (out.emplace_back(parts), ...);
  return out;
}

constexpr std::array<Form, 11> kForms = {{
    {"dense", "dense", 0, 0, [](const Numbers&) { return list(Dense{}); }},
    {"local", "local(window)", 1, 1, [](const Numbers& n) { return list(Local{at(n, 0, 0)}); }},
    {"column", "column(stride)", 1, 1, [](const Numbers& n) { return list(Column{at(n, 0, 0)}); }},
    {"row", "row(stride)", 1, 1, [](const Numbers& n) { return list(Row{at(n, 0, 0)}); }},
    {"summary", "summary(stride, width [, group])", 2, 3,
     [](const Numbers& n) {
       return list(Summary{at(n, 0, 0), at(n, 1, 0), at(n, 2, -1)});
     }},
    {"previous_row", "previous_row(stride)", 1, 1,
     [](const Numbers& n) { return list(PreviousRow{at(n, 0, 0)}); }},
    {"global", "global(count)", 1, 1, [](const Numbers& n) { return list(Global{at(n, 0, 0)}); }},
    {"random", "random(count, seed [, block])", 2, 3,
     [](const Numbers& n) {
       return list(Random{at(n, 0, 0), n[1], at(n, 2, kRandomBlock)});
     }},
    {"blocks", "blocks(file)", 1, 1, nullptr},
    {"strided", "strided(stride)", 1, 1,
     [](const Numbers& n) { return list(Local{at(n, 0, 0)}, Column{at(n, 0, 0)}); }},
    {"fixed", "fixed(stride, width)", 2, 2,
     [](const Numbers& n) {
       return list(Row{at(n, 0, 0)}, Summary{at(n, 0, 0), at(n, 1, 0), -1});
     }},
}};

std::size_t edits(std::string_view a, std::string_view b) {
  std::vector<std::size_t> row(b.size() + 1);
  std::iota(row.begin(), row.end(), std::size_t{0});
  for (std::size_t i = 0; i < a.size(); ++i) {
    std::size_t diagonal = std::exchange(row[0], i + 1);
    for (std::size_t j = 0; j < b.size(); ++j) {
      const std::size_t replaced = diagonal + (a[i] == b[j] ? 0 : 1);
      diagonal = row[j + 1];
      row[j + 1] = std::min({replaced, row[j] + 1, row[j + 1] + 1});
    }
  }
  return row[b.size()];
}

const Form& nearest_form(std::string_view name) {
  return *std::min_element(kForms.begin(), kForms.end(), [&](const Form& a, const Form& b) {
    return edits(name, a.name) < edits(name, b.name);
  });
}

bool is_blank(char c) { return c == ' ' || c == '\t' || c == '\n' || c == '\r'; }
bool is_digit(char c) { return c >= '0' && c <= '9'; }
bool is_name(char c) { return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || c == '_'; }

class Parser {
 public:
  explicit Parser(std::string_view spec) : spec_(spec) {}

  std::vector<HeadPattern> layer() {
    std::vector<HeadPattern> kinds;
    do {
      kinds.push_back(head());
      if (kinds.size() > kMaxKinds) fail(text("more than ", kMaxKinds, " kinds of heads"));
    } while (take(','));
    if (here_ != spec_.size()) fail("want \"+\", \",\" or the end");
    return kinds;
  }

 private:
  HeadPattern head() {
    HeadPattern head;
    skip_blanks();
    if (here_ < spec_.size() && is_digit(spec_[here_])) {
      const std::size_t start = here_;
      head.weight = static_cast<std::int64_t>(number(kNumberLimit));
      if (head.weight < 1) fault(start, "a weight is 0, want at least 1");
      if (!take('*')) fail("want \"*\" behind the weight of a head");
    }
    do {
      for (Part& part : term()) head.parts.push_back(std::move(part));
      if (head.parts.size() > kMaxParts) fail(text("more than ", kMaxParts, " parts in a head"));
    } while (take('+'));
    return head;
  }

  std::vector<Part> term() {
    skip_blanks();
    const std::size_t start = here_;
    while (here_ < spec_.size() && is_name(spec_[here_])) ++here_;
    const std::string_view name = spec_.substr(start, here_ - start);
    if (name.empty()) fail("want a part, for example local(128)");
    const auto form =
        std::find_if(kForms.begin(), kForms.end(), [&](const Form& f) { return f.name == name; });
    if (form == kForms.end()) {
      if (name.size() > 40) fault(start, "no part has this name");
      fault(start, text("no part has this name, did you mean ", nearest_form(name).usage, "?"));
    }
    std::vector<Part> parts;
    if (form->make == nullptr) {
      parts.push_back(read_blocks(file()));
    } else {
      const Numbers numbers = arguments(*form);
      if (numbers.size() < form->least || numbers.size() > form->most)
        fault(start, text(numbers.size(), " arguments, want ", form->usage));
      parts = form->make(numbers);
    }
    for (const Part& part : parts)
      if (const auto what = fault_of(part)) fault(start, *what);
    return parts;
  }

  Numbers arguments(const Form& form) {
    Numbers numbers;
    if (form.most == 0 || !take('(')) return numbers;
    do {
      const bool is_seed = form.name == "random" && numbers.size() == 1;
      numbers.push_back(number(is_seed ? 0 : kNumberLimit));
    } while (numbers.size() < form.most && take(','));
    if (!take(')')) fail(text("want \")\", as in ", form.usage));
    return numbers;
  }

  std::string file() {
    if (!take('(')) fail("want \"(\", as in blocks(file)");
    const std::size_t end = spec_.find_first_of(")\n", here_);
    if (end == std::string_view::npos || spec_[end] != ')')
      fail("want \")\" behind the name of a file");
    std::string_view name = spec_.substr(here_, end - here_);
    while (!name.empty() && is_blank(name.front())) name.remove_prefix(1);
    while (!name.empty() && is_blank(name.back())) name.remove_suffix(1);
    if (name.empty()) fail("want the name of a file, as in blocks(file)");
    here_ = end + 1;
    return std::string(name);
  }

  // Below `limit`; 0: any 64-bit number.
  std::uint64_t number(std::int64_t limit) {
    skip_blanks();
    std::uint64_t value = 0;
    const char* const begin = spec_.data() + here_;
    const auto [end, error] = std::from_chars(begin, spec_.data() + spec_.size(), value);
    if (end == begin) fail("want a whole number that is not negative");
    if (error != std::errc() || (limit != 0 && value >= static_cast<std::uint64_t>(limit)))
      fail(limit != 0 ? text("number is too large, want less than ", limit)
                      : "number is too large, want at most 64 bits");
    here_ += static_cast<std::size_t>(end - begin);
    return value;
  }

  void skip_blanks() {
    while (here_ < spec_.size() && is_blank(spec_[here_])) ++here_;
  }

  bool take(char c) {
    skip_blanks();
    if (here_ == spec_.size() || spec_[here_] != c) return false;
    ++here_;
    return true;
  }

  // What is written from `start` on is readable but wrong.
  [[noreturn]] void fault(std::size_t start, const std::string& what) const {
    throw invalid_argument("pattern: ", quoted(spec_.substr(start, here_ - start)), ": ", what);
  }

  [[noreturn]] void fail(const std::string& want) const {
    if (here_ == spec_.size())
      throw invalid_argument("pattern: ", quoted(spec_), " ends too early: ", want);
    throw invalid_argument("pattern: at character ", here_ + 1, ", ", quoted(spec_.substr(here_)),
                           ": ", want);
  }

  std::string_view spec_;
  std::size_t here_ = 0;
};

// [1, kNumberLimit)
std::optional<std::string> check(const char* name, std::int64_t value) {
  if (value < 1) return text(name, " is ", value, ", want at least 1");
  if (value >= kNumberLimit) return text(name, " is ", value, ", want less than ", kNumberLimit);
  return std::nullopt;
}

struct Faults {
  using Found = std::optional<std::string>;
  Found operator()(const Dense&) const { return std::nullopt; }
  Found operator()(const Local& p) const { return check("window", p.window); }
  Found operator()(const Column& p) const { return check("stride", p.stride); }
  Found operator()(const Row& p) const { return check("stride", p.stride); }
  Found operator()(const PreviousRow& p) const { return check("stride", p.stride); }
  Found operator()(const Global& p) const { return check("count", p.count); }
  Found operator()(const Summary& p) const {
    if (const Found f = check("stride", p.stride)) return f;
    if (const Found f = check("width", p.width)) return f;
    if (p.width > p.stride)
      return text("width is ", p.width, ", want at most the stride ", p.stride);
    if (p.group >= p.stride / p.width)
      return text("group is ", p.group, ", want less than ", p.stride / p.width,
                  " (stride / width)");
    return std::nullopt;
  }
  Found operator()(const Random& p) const {
    if (const Found f = check("count", p.count)) return f;
    return check("block", p.block);
  }
  Found operator()(const Blocks& p) const {
    if (const Found f = check("block", p.block)) return f;
    if (p.rows == nullptr) return "there is no mask";
    for (std::size_t q = 0; q < p.rows->size(); ++q) {
      std::int64_t before = -1;
      for (const std::int64_t k : (*p.rows)[q]) {
        if (k <= before || k > static_cast<std::int64_t>(q))
          return text("query block ", q, " has key block ", k, " behind ", before,
                      ", want ascending and at most ", q);
        before = k;
      }
    }
    return std::nullopt;
  }
};

}  // namespace

std::optional<std::string> fault_of(const Part& part) { return std::visit(Faults{}, part); }

std::string quoted(std::string_view text) {
  constexpr std::size_t kMax = 60;
  std::string out = "\"";
  for (const char c : text.substr(0, kMax)) out += c >= ' ' && c <= '~' ? c : '?';
  return out + (text.size() > kMax ? "...\"" : "\"");
}

LayerPattern parse_pattern(std::string_view spec) {
  if (spec.size() > kMaxSpec)
    throw invalid_argument("pattern: a spec of ", spec.size(), " bytes, want at most ", kMaxSpec);
  return {Parser(spec).layer(), std::string(spec)};
}

}  // namespace longstride
