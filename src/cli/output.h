// stdout (results) and text for people.
#pragma once

#include <cstdint>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>

#include "longstride/recompute.h"

namespace longstride::cli {

// Thrown by the functions that write to stdout when its reader has gone; main ends quietly with 0.
struct ClosedPipe {};

// Writes to stdout and flushes. Throws ClosedPipe, or environment_error where it cannot be written.
void print(std::string_view bytes);

// One document on one line. Bytes that are not UTF-8 become U+FFFD.
void print_json(const nlohmann::ordered_json& document);

// At most kLongestLine characters without line ends or control characters: control characters and
// bytes that are not UTF-8 become \n, \t, \xNN; too long a line loses its middle.
inline constexpr std::size_t kLongestLine = 300;
std::string one_line(std::string_view message);

std::string with_commas(std::int64_t count);  // 94,949,888
std::string with_unit(double value);          // 12.3 k, 4.56 M
std::string as_bytes(std::int64_t bytes);     // 84.2 MB
std::string as_duration(double seconds);      // 0:07, 1:02:03

// off; on (q, k, v of 12 blocks); on (segments of 5 blocks)
std::string recompute_text(const Recompute& again);
nlohmann::ordered_json recompute_json(const Recompute& again);

}  // namespace longstride::cli
