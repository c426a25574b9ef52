#include "files/manifest.h"

#include <initializer_list>
#include <nlohmann/json.hpp>
#include <string_view>

#include "files/files.h"
#include "longstride/error.h"

namespace longstride {

namespace {

using Json = nlohmann::json;

constexpr std::int64_t kFormat = 1;

// An object with exactly these keys.
void check_keys(const Json& object, std::string_view what,
                std::initializer_list<const char*> keys) {
  if (!object.is_object()) throw invalid_argument("manifest: ", what, " is not an object");
  for (const char* key : keys)
    if (!object.contains(key)) throw invalid_argument("manifest: ", what, " has no '", key, "'");
  if (object.size() != keys.size())
    throw invalid_argument("manifest: ", what, " has ", object.size(), " keys, want ", keys.size());
}

std::int64_t whole_number(const Json& value, std::string_view what) {
  if (!value.is_number_unsigned() || value.get<std::uint64_t>() > INT64_MAX)
    throw invalid_argument("manifest: ", what, " is not a whole number");
  return value.get<std::int64_t>();
}

void check_name(const std::string& name) {
  const bool plain = !name.empty() && name.find('/') == name.npos && name != "." && name != ".." &&
                     name.find('\0') == name.npos && name != kManifestName;
  if (!plain) throw invalid_argument("manifest: '", printable(name, 60), "' is no name of a file");
}

}  // namespace

std::string to_json(const Manifest& manifest) {
  Json files = Json::object();
  for (const auto& [name, record] : manifest.files)
    files[name] = {{"bytes", record.bytes}, {"xxh3_128", record.hash}};
  const Json json = {{"format", kFormat}, {"step", manifest.step}, {"files", files}};
  return json.dump(2) + "\n";
}

Manifest parse_manifest(const std::string& content) {
  const Json json = Json::parse(content, nullptr, false);
  if (json.is_discarded()) throw invalid_argument("manifest: not JSON");
  if (json.is_object() && json.contains("format") && json["format"] != kFormat)
    throw invalid_argument("manifest: format ", printable(json["format"].dump(), 20),
                           ", this version reads ", kFormat);
  check_keys(json, "it", {"format", "step", "files"});
  Manifest manifest;
  manifest.step = whole_number(json["step"], "step");
  if (!json["files"].is_object()) throw invalid_argument("manifest: files is not an object");
  for (const auto& [name, entry] : json["files"].items()) {
    check_name(name);
    const std::string what = text("'", printable(name, 60), "'");
    check_keys(entry, what, {"bytes", "xxh3_128"});
    if (!entry["xxh3_128"].is_string())
      throw invalid_argument("manifest: the hash of ", what, " is not text");
    manifest.files[name] = {whole_number(entry["bytes"], text("bytes of ", what)),
                            entry["xxh3_128"].get<std::string>()};
  }
  for (const char* name : {kModelName, kOptimizerName, kStateName})
    if (!manifest.files.contains(name)) throw invalid_argument("manifest: has no file ", name);
  return manifest;
}

}  // namespace longstride
