// The presets built into the program, and how a config is found by name or path.
#include <filesystem>

#include "files/files.h"
#include "longstride/config.h"
#include "longstride/error.h"
#include "model/nearest.h"
#include "model/presets_data.h"

namespace longstride {

namespace {

constexpr std::int64_t kLargestFile = std::int64_t{1} << 20;

std::vector<Preset> read_presets() {
  std::vector<Preset> presets;
  for (const PresetFile& file : preset_files()) {
    const std::string origin = text("presets/", file.name, ".toml");
    const Config config = parse_config(file.toml, origin);
    if (config.name != file.name)
      throw internal_error("config: ", origin, " has the name '", config.name, "'");
    presets.push_back({config.name, config.description, file.toml});
  }
  return presets;
}

Error not_found(const std::string& preset_or_file) {
  std::vector<std::string> names;
  for (const Preset& preset : presets()) names.push_back(preset.name);
  return invalid_argument("config: '", preset_or_file,
                          "' is neither a preset nor a file; the nearest preset is ",
                          nearest_key(preset_or_file, names));
}

}  // namespace

const std::vector<Preset>& presets() {
  static const std::vector<Preset> all = read_presets();
  return all;
}

Config load_config(const std::string& preset_or_file, const std::vector<std::string>& overrides) {
  for (const Preset& preset : presets())
    if (preset.name == preset_or_file)
      return parse_config(preset.toml, text("presets/", preset.name, ".toml"), overrides);

  std::error_code error;
  const auto status = std::filesystem::status(preset_or_file, error);
  if (status.type() == std::filesystem::file_type::not_found) throw not_found(preset_or_file);
  if (status.type() == std::filesystem::file_type::directory)
    throw invalid_argument("config: ", preset_or_file, " is a folder, want a TOML file");
  return parse_config(read_file(preset_or_file, kLargestFile), preset_or_file, overrides);
}

}  // namespace longstride
