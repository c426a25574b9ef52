#include "data/sidecar.h"

#include <algorithm>
#include <initializer_list>
#include <nlohmann/json.hpp>

#include "files/files.h"
#include "longstride/error.h"

namespace longstride {

namespace {

using Json = nlohmann::json;
namespace fs = std::filesystem;

constexpr std::int64_t kFormat = 1;
constexpr std::int64_t kMaxSidecar = std::int64_t{1} << 28;  // some million sources

// Reads the sidecar of `path`; every message names it.
class Reader {
 public:
  explicit Reader(const fs::path& path) : path_(printable(path.native(), 400)) {}

  Sidecar read(const std::string& content) const {
    const Json json = Json::parse(content, nullptr, false);
    if (json.is_discarded()) fail("not JSON");
    if (json.is_object() && json.contains("format") && json["format"] != kFormat)
      fail(text("format ", printable(json["format"].dump(), 20), ", this version reads ", kFormat));
    check_keys(json, "it", {"format", "kind", "bytes", "splits", "xxh3_128", "sources"});
    Sidecar sidecar;
    sidecar.kind = string(json["kind"], "kind");
    if (sidecar.kind != "bytes" && sidecar.kind != "text")
      fail(text("kind is '", printable(sidecar.kind, 40), "', want bytes or text"));
    sidecar.bytes = whole_number(json["bytes"], "bytes");
    sidecar.hash = string(json["xxh3_128"], "xxh3_128");
    read_splits(json["splits"], sidecar);
    if (!json["sources"].is_array()) fail("sources is not a list");
    for (const Json& source : json["sources"]) {
      check_keys(source, "a source", {"path", "bytes"});
      sidecar.sources.push_back(
          {string(source["path"], "path"), whole_number(source["bytes"], "bytes of a source")});
    }
    return sidecar;
  }

 private:
  [[noreturn]] void fail(const std::string& what) const {
    throw invalid_argument("data: ", path_, ": ", what);
  }

  void check_keys(const Json& object, const std::string& what,
                  std::initializer_list<const char*> keys) const {
    if (!object.is_object()) fail(what + " is not an object");
    for (const char* key : keys)
      if (!object.contains(key)) fail(what + " has no '" + key + "'");
    for (const auto& [key, value] : object.items())
      if (std::find(keys.begin(), keys.end(), key) == keys.end())
        fail(text(what, " has the unknown key '", printable(key, 40), "'"));
  }

  std::int64_t whole_number(const Json& value, const std::string& what) const {
    if (!value.is_number_unsigned() || value.get<std::uint64_t>() > INT64_MAX)
      fail(what + " is not a whole number");
    return value.get<std::int64_t>();
  }

  std::string string(const Json& value, const std::string& what) const {
    if (!value.is_string()) fail(what + " is not text");
    return value.get<std::string>();
  }

  void read_splits(const Json& splits, Sidecar& sidecar) const {
    check_keys(splits, "splits", {"train", "valid", "test"});
    std::int64_t from = 0;
    for (std::size_t i = 0; i < kSplitNames.size(); ++i) {
      const std::string name(kSplitNames[i]);
      const Json& pair = splits[name];
      if (!pair.is_array() || pair.size() != 2) fail(text("split ", name, " is not [begin, end]"));
      const Span span = {whole_number(pair[0], text("begin of ", name)),
                         whole_number(pair[1], text("end of ", name))};
      if (span.begin < from || span.end < span.begin || span.end > sidecar.bytes)
        fail(text("split ", name, " is [", span.begin, ", ", span.end, "], want it within [", from,
                  ", ", sidecar.bytes, "]"));
      sidecar.splits[i] = span;
      from = span.end;
    }
  }

  std::string path_;
};

}  // namespace

fs::path sidecar_path(const fs::path& data) {
  fs::path path = data;
  return path += ".json";
}

std::string to_json(const Sidecar& sidecar) {
  Json splits = Json::object(), sources = Json::array();
  for (std::size_t i = 0; i < kSplitNames.size(); ++i)
    splits[std::string(kSplitNames[i])] = {sidecar.splits[i].begin, sidecar.splits[i].end};
  for (const DataSource& source : sidecar.sources)
    sources.push_back({{"path", source.path}, {"bytes", source.bytes}});
  const Json json = {{"format", kFormat}, {"kind", sidecar.kind},     {"bytes", sidecar.bytes},
                     {"splits", splits},  {"xxh3_128", sidecar.hash}, {"sources", sources}};
  return json.dump(2) + "\n";
}

std::optional<Sidecar> read_sidecar(const fs::path& data) {
  const fs::path path = sidecar_path(data);
  std::error_code unknown;
  if (!fs::exists(fs::symlink_status(path, unknown))) return std::nullopt;
  return Reader(path).read(read_file(path, kMaxSidecar));
}

std::array<Span, 3> default_splits(std::int64_t n) {
  constexpr std::int64_t kEnwik8 = 100'000'000;
  // floor(0.90 n) and floor(0.95 n), without overflow for any n.
  const std::int64_t train = n == kEnwik8 ? 90'000'000 : n / 10 * 9 + n % 10 * 9 / 10;
  const std::int64_t valid = n == kEnwik8 ? 95'000'000 : n / 20 * 19 + n % 20 * 19 / 20;
  return {Span{0, train}, Span{train, valid}, Span{valid, n}};
}

}  // namespace longstride
