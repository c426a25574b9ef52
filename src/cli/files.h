// Files that the command line itself reads and writes (prompts, samples).
#pragma once

#include <string>
#include <string_view>

namespace longstride::cli {

// Throws invalid_argument where it is missing or a folder, environment_error where not readable.
std::string read_whole_file(const std::string& path);

// Throws environment_error where a file of this name could not be written; leaves no trace.
void check_writable(const std::string& path);

// Writes a temporary file beside `path` and renames it over: never half a file.
void write_file(const std::string& path, std::string_view content);

}  // namespace longstride::cli
