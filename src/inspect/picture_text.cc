// Masks in a terminal: up to half of `cells` positions as two characters each, up to `cells` as
// half blocks, above that as shades of a cell two rows high.
#include <algorithm>
#include <array>

#include "inspect/picture.h"
#include "longstride/error.h"

namespace longstride {

namespace {

constexpr std::int64_t kMaxCells = 1024;
constexpr std::size_t kMaxKinds = 8;
constexpr std::string_view kUnseen = "·", kFull = "█";
constexpr std::array<std::string_view, 3> kParts = {"▓", "▒", "░"};

std::string_view glyph(std::size_t part) { return kParts[std::min(part, kParts.size() - 1)]; }

std::string wide_rows(const Panel& panel, const Grid& grid) {
  std::string out;
  for (std::int64_t row = 0; row < grid.cells; ++row) {
    for (std::int64_t column = 0; column <= row; ++column) {
      std::string_view cell = kUnseen;
      for (std::size_t p = 0; p < panel.parts.size(); ++p)
        if (panel.parts[p].shares[grid.index(row, column)] > 0)
          cell = row == column ? kFull : glyph(p);
      out.append(cell).append(cell == kUnseen ? " " : cell);
    }
    out += '\n';
  }
  return out;
}

std::string_view half_block(bool upper, bool lower) {
  return upper ? (lower ? kFull : "▀") : (lower ? "▄" : kUnseen);
}

std::string_view shade(double darkness) {
  constexpr std::array<std::string_view, 4> kShades = {"░", "▒", "▓", "█"};
  if (darkness <= 0) return kUnseen;
  return kShades[std::min<std::size_t>(3, static_cast<std::size_t>(darkness * 4))];
}

// Characters are twice as high as wide: each shows one column of two rows.
std::string narrow_rows(const Panel& panel, const Grid& grid) {
  std::string out;
  for (std::int64_t row = 0; row < grid.cells; row += 2) {
    const std::int64_t below = std::min(row + 1, grid.cells - 1);
    for (std::int64_t column = 0; column <= below; ++column) {
      const double upper = panel.share(grid.index(row, column));
      const double lower = below > row ? panel.share(grid.index(below, column)) : 0;
      if (grid.size == 1)
        out += half_block(upper > 0, lower > 0);
      else
        out += shade(ink(column <= row && below > row ? (upper + lower) / 2 : upper + lower));
    }
    out += '\n';
  }
  return out;
}

std::string caption(const Panel& panel, bool glyphs) {
  std::string out = panel.title + ":";
  for (std::size_t p = 0; p < panel.parts.size(); ++p) {
    out += p == 0 ? " " : " + ";
    if (glyphs) out.append(glyph(p)).append(" ");
    out += panel.parts[p].name;
  }
  return out + "\n";
}

}  // namespace

std::string draw_pattern_text(const PatternOptions& options, std::int64_t cells) {
  if (cells < 2 || cells > kMaxCells)
    throw invalid_argument("inspect: cells is ", cells, ", want 2 to ", kMaxCells);
  const Picture picture = make_picture(options, cells, kMaxKinds);
  const bool wide = 2 * picture.grid.length <= cells;
  std::string out;
  for (const Panel& panel : picture.panels) {
    if (!out.empty()) out += '\n';
    out += caption(panel, wide);
    out += wide ? wide_rows(panel, picture.grid) : narrow_rows(panel, picture.grid);
  }
  return out;
}

}  // namespace longstride
