// An RGB image to draw rectangles and small text on.
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace longstride {

using Colour = std::array<std::uint8_t, 3>;

Colour mix(const Colour& from, const Colour& to, double share);

class Canvas {
 public:
  Canvas(std::int64_t width, std::int64_t height);  // white

  // What lies outside is left out.
  void fill(std::int64_t x, std::int64_t y, std::int64_t width, std::int64_t height,
            const Colour& colour);
  // Letters of 5 x 9 dots of `scale` pixels, kLetter dots apart; unknown ones show as a small box.
  void write(std::int64_t x, std::int64_t y, std::string_view line, std::int64_t scale,
             const Colour& colour);
  std::string png() const;  // the bytes of a PNG file

  static constexpr std::int64_t kLetter = 6;  // dots from letter to letter

 private:
  std::int64_t width_, height_;
  std::vector<std::uint8_t> pixels_;
};

// The dots of a letter: 9 rows, the leftmost dot in bit 4.
const std::array<std::uint8_t, 9>& letter_dots(char letter);

}  // namespace longstride
