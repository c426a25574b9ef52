// FILE.json beside a prepared FILE: where it comes from, its splits and its hash. docs/formats.md.
#pragma once

#include <array>
#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "data/dataset.h"

namespace longstride {

inline constexpr std::array<std::string_view, 3> kSplitNames = {"train", "valid", "test"};

struct DataSource {
  std::string path;
  std::int64_t bytes = 0;
  bool operator==(const DataSource&) const = default;
};

struct Sidecar {
  std::string kind = "bytes";  // "text": all of it is UTF-8
  std::int64_t bytes = 0;
  std::array<Span, 3> splits;  // in the order of kSplitNames
  std::string hash;            // XXH3-128
  std::vector<DataSource> sources;
};

std::filesystem::path sidecar_path(const std::filesystem::path& data);
std::string to_json(const Sidecar& sidecar);

// nullopt where there is none; throws invalid_argument where it is not a sidecar: unknown, missing
// or wrong entries, splits that overlap, descend or leave the file.
std::optional<Sidecar> read_sidecar(const std::filesystem::path& data);

// The splits of a file of n bytes that says nothing about them.
std::array<Span, 3> default_splits(std::int64_t n);

}  // namespace longstride
