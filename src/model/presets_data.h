// The preset files, built into the program (cmake/presets.cmake).
#pragma once

#include <vector>

namespace longstride {

struct PresetFile {
  const char* name;
  const char* toml;
};

const std::vector<PresetFile>& preset_files();

}  // namespace longstride
