// The names inside RUN/checkpoints.
#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace longstride {

struct StepFolder {
  enum class Kind { temporary, old, published };
  std::filesystem::path path;
  std::int64_t step = 0;
  Kind kind = Kind::published;
  std::int64_t owner = 0;  // PID, of temporary and old
};

std::filesystem::path checkpoints_folder(const std::filesystem::path& run);
std::string step_name(std::int64_t step);  // step-00001000

// What kind of folder this name is; nullopt: none of ours.
std::optional<StepFolder> parse_step_folder(const std::filesystem::path& path);

// All of the run, ascending by step, and of one step: temporary, old, published.
std::vector<StepFolder> step_folders(const std::filesystem::path& run);

// Removes a folder so that a kill in between leaves no half of it under its name.
void remove_step_folder(const StepFolder& folder);

}  // namespace longstride
