// Masks as a picture in the manner of Figure 3 of the paper: a panel a kind of head and one of all
// heads; queries down, keys across; a colour a part, the own position darkest.
#include <algorithm>
#include <array>

#include "files/files.h"
#include "inspect/picture.h"
#include "inspect/picture_canvas.h"
#include "longstride/error.h"

namespace longstride {

namespace {

constexpr std::int64_t kMaxCells = 384, kPanel = 512;  // cells a side; pixels a side, about
constexpr std::int64_t kMargin = 40, kSwatch = 14, kRow = 24, kScale = 2;
constexpr std::size_t kMaxKinds = 11, kAcross = 4, kMaxLegend = 12;

constexpr Colour kWhite = {255, 255, 255}, kUnseen = {233, 236, 240}, kText = {52, 58, 70},
                 kOwn = {16, 42, 92};
constexpr std::array<Colour, 8> kColours = {{
    {52, 112, 190},   // blue
    {150, 199, 240},  // light blue
    {236, 164, 72},   // amber
    {104, 178, 142},  // green
    {171, 128, 196},  // violet
    {222, 112, 104},  // red
    {120, 130, 148},  // slate
    {206, 190, 92},   // olive
}};

const Colour& colour_of(const PanelPart& part) { return kColours[part.colour % kColours.size()]; }

// The title and the parts, as many as there is room for.
std::int64_t caption_lines(const Panel& panel) {
  return static_cast<std::int64_t>(std::min(panel.parts.size(), kMaxLegend) + 1);
}

struct Layout {
  std::int64_t pixels, side, header, width, height;  // of a cell; of a panel's mask; of all panels
  std::size_t across;

  explicit Layout(const Picture& picture) {
    const std::int64_t cells = picture.grid.cells;
    pixels = std::max<std::int64_t>(1, kPanel / cells);
    pixels = std::min<std::int64_t>(pixels, 24);
    side = std::max(pixels * cells, kPanel / 2);
    std::int64_t lines = 0;
    for (const Panel& panel : picture.panels) lines = std::max(lines, caption_lines(panel));
    header = kRow * lines + kRow / 2;
    const std::size_t panels = picture.panels.size(), down = (panels - 1) / kAcross + 1;
    across = (panels - 1) / down + 1;
    width = kMargin + static_cast<std::int64_t>(across) * (side + kMargin);
    height = kMargin + kRow + static_cast<std::int64_t>(down) * (header + side + kMargin);
  }
};

// As many letters as fit, ".." where some do not.
std::string fitted(const std::string& line, std::int64_t width) {
  const auto most =
      static_cast<std::size_t>(std::max<std::int64_t>(3, width / (Canvas::kLetter * kScale)));
  return line.size() <= most ? line : line.substr(0, most - 2) + "..";
}

Colour cell_colour(const Panel& panel, std::size_t cell) {
  std::array<double, 3> sum{};
  double total = 0;
  for (const PanelPart& part : panel.parts) {
    const double share = static_cast<double>(part.shares[cell]);
    for (std::size_t c = 0; c < 3; ++c) sum[c] += share * colour_of(part)[c];
    total += share;
  }
  if (total <= 0) return kUnseen;
  Colour mean{};
  for (std::size_t c = 0; c < 3; ++c) mean[c] = static_cast<std::uint8_t>(sum[c] / total);
  return mix(kUnseen, mean, ink(std::min(1.0, total)));
}

// A cell of one position shows a gap to the next, and on the diagonal whose own position it is:
// filled where the query attends to itself, else only framed.
void draw_mask(Canvas& canvas, const Panel& panel, const Grid& grid, const Layout& layout,
               std::int64_t x, std::int64_t y) {
  const std::int64_t p = layout.pixels, gap = p >= 5 ? 1 : 0, side = p * grid.cells - gap;
  canvas.fill(x - 2, y - 2, side + 4, side + 4, kUnseen);
  canvas.fill(x - 1, y - 1, side + 2, side + 2, kWhite);
  const bool marks = grid.size == 1 && p >= 4;
  for (std::int64_t row = 0; row < grid.cells; ++row) {
    for (std::int64_t column = 0; column <= row; ++column) {
      const std::size_t cell = grid.index(row, column);
      const std::int64_t left = x + column * p, top = y + row * p, size = p - gap;
      const bool own = marks && row == column;
      if (!own) {
        canvas.fill(left, top, size, size, cell_colour(panel, cell));
        continue;
      }
      canvas.fill(left, top, size, size, kOwn);
      if (panel.share(cell) <= 0) canvas.fill(left + 1, top + 1, size - 2, size - 2, kWhite);
    }
  }
}

void draw_panel(Canvas& canvas, const Panel& panel, const Grid& grid, const Layout& layout,
                std::int64_t x, std::int64_t y) {
  // The caption ends right above the mask.
  std::int64_t line = y + layout.header - kRow / 2 - kRow * caption_lines(panel);
  canvas.write(x, line, fitted(panel.title, layout.side), kScale, kText);
  for (std::size_t p = 0; p < std::min(panel.parts.size(), kMaxLegend); ++p) {
    line += kRow;
    const std::int64_t indent = kSwatch + 8;
    canvas.fill(x, line, kSwatch, kSwatch, colour_of(panel.parts[p]));
    canvas.write(x + indent, line, fitted(panel.parts[p].name, layout.side - indent), kScale,
                 kText);
  }
  draw_mask(canvas, panel, grid, layout, x, y + layout.header);
}

}  // namespace

void draw_pattern_png(const PatternOptions& options, const std::filesystem::path& file) {
  const Picture picture = make_picture(options, kMaxCells, kMaxKinds);
  const Layout layout(picture);
  Canvas canvas(layout.width, layout.height);
  const std::string size =
      picture.grid.size == 1 ? "" : text(", ", picture.grid.size, " positions a dot");
  const std::string title = text(picture.spec, "   length ", options.length, size);
  canvas.write(kMargin, kMargin / 2, fitted(title, layout.width - 2 * kMargin), kScale, kOwn);
  for (std::size_t p = 0; p < picture.panels.size(); ++p) {
    const auto column = static_cast<std::int64_t>(p % layout.across),
               row = static_cast<std::int64_t>(p / layout.across);
    draw_panel(canvas, picture.panels[p], picture.grid, layout,
               kMargin + column * (layout.side + kMargin),
               kMargin + kRow + row * (layout.header + layout.side + kMargin));
  }
  write_file_atomically(file, canvas.png());
}

}  // namespace longstride
