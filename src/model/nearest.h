// The known word that a mistyped one most likely stands for.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace longstride {

// Insertions, deletions and replacements that make `b` of `a` (Levenshtein). O(|a| |b|).
std::int64_t edit_distance(std::string_view a, std::string_view b);

// Of `known` (not empty), the nearest to `key`; a key also counts by what stands behind its last
// dot, so that "layers" and "train.layers" both find "model.layers".
std::string nearest_key(std::string_view key, const std::vector<std::string>& known);

}  // namespace longstride
