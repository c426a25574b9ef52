#include "model/nearest.h"

#include <algorithm>
#include <cstdint>
#include <limits>
#include <numeric>

namespace longstride {

std::int64_t edit_distance(std::string_view a, std::string_view b) {
  std::vector<std::int64_t> row(b.size() + 1);  // distances of a[0, i) to every b[0, j)
  std::iota(row.begin(), row.end(), 0);
  for (std::size_t i = 0; i < a.size(); ++i) {
    std::int64_t diagonal = row[0];
    row[0] = static_cast<std::int64_t>(i) + 1;
    for (std::size_t j = 0; j < b.size(); ++j) {
      const std::int64_t replaced = diagonal + (a[i] != b[j]);
      diagonal = row[j + 1];
      row[j + 1] = std::min({replaced, row[j] + 1, row[j + 1] + 1});
    }
  }
  return row.back();
}

std::string nearest_key(std::string_view key, const std::vector<std::string>& known) {
  constexpr std::size_t kLongest = 80;  // nobody mistypes more, and the work stays bounded
  key = key.substr(0, kLongest);
  const auto tail = [](std::string_view s) { return s.substr(s.rfind('.') + 1); };
  std::string best;
  std::int64_t least = std::numeric_limits<std::int64_t>::max();
  for (const std::string& candidate : known) {
    // A wrong section costs one, so an equal key in the right section wins.
    const std::int64_t distance =
        std::min(edit_distance(key, candidate), edit_distance(tail(key), tail(candidate)) + 1);
    if (distance < least) least = distance, best = candidate;
  }
  return best;
}

}  // namespace longstride
