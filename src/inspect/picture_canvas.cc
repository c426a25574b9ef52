#include "inspect/picture_canvas.h"

#include <png.h>

#include <algorithm>
#include <cmath>

#include "longstride/error.h"

namespace longstride {

Colour mix(const Colour& from, const Colour& to, double share) {
  Colour out{};
  for (std::size_t c = 0; c < out.size(); ++c)
    out[c] = static_cast<std::uint8_t>(std::lround(from[c] + (to[c] - from[c]) * share));
  return out;
}

Canvas::Canvas(std::int64_t width, std::int64_t height)
    : width_(width), height_(height), pixels_(static_cast<std::size_t>(width * height * 3), 255) {}

void Canvas::fill(std::int64_t x, std::int64_t y, std::int64_t width, std::int64_t height,
                  const Colour& colour) {
  const std::int64_t right = std::min(x + width, width_), bottom = std::min(y + height, height_);
  for (std::int64_t row = std::max<std::int64_t>(0, y); row < bottom; ++row)
    for (std::int64_t column = std::max<std::int64_t>(0, x); column < right; ++column)
      std::copy(colour.begin(), colour.end(), pixels_.begin() + (row * width_ + column) * 3);
}

void Canvas::write(std::int64_t x, std::int64_t y, std::string_view line, std::int64_t scale,
                   const Colour& colour) {
  for (const char letter : line) {
    const auto& rows = letter_dots(letter);
    for (std::size_t row = 0; row < rows.size(); ++row)
      for (std::int64_t dot = 0; dot < 5; ++dot)
        if ((rows[row] >> (4 - dot)) & 1)
          fill(x + dot * scale, y + static_cast<std::int64_t>(row) * scale, scale, scale, colour);
    x += kLetter * scale;
  }
}

std::string Canvas::png() const {
  png_image image{};
  image.version = PNG_IMAGE_VERSION;
  image.width = static_cast<png_uint_32>(width_);
  image.height = static_cast<png_uint_32>(height_);
  image.format = PNG_FORMAT_RGB;
  png_alloc_size_t size = PNG_IMAGE_PNG_SIZE_MAX(image);
  std::string out(size, '\0');
  if (png_image_write_to_memory(&image, out.data(), &size, 0, pixels_.data(), 0, nullptr) == 0)
    throw internal_error("inspect: libpng: ", image.message);
  out.resize(size);
  return out;
}

}  // namespace longstride
