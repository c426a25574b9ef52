// What the parser and the plan both ask about one part.
#pragma once

#include <optional>
#include <string>
#include <string_view>

#include "longstride/pattern.h"

namespace longstride {

// Numbers of a pattern, and the lengths it is planned for, stay below this, so that no product or
// sum of a few of them can overflow.
inline constexpr std::int64_t kNumberLimit = std::int64_t{1} << 40;

// What makes a part unusable ("window is 0, want at least 1"), or nothing.
std::optional<std::string> fault_of(const Part& part);

// Text from outside, fit for a one-line message: in quotes, shortened, odd bytes as '?'.
std::string quoted(std::string_view text);

// The mask in `file`; see blocks_file.cc for the format. Throws invalid_argument with the line.
Blocks read_blocks(const std::string& file);

}  // namespace longstride
