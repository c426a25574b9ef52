// The drawings against the predicate.
#include "inspect/picture.h"

#include <gtest/gtest.h>
#include <png.h>
#include <unistd.h>

#include <map>

#include "files/files.h"
#include "inspect/picture_canvas.h"
#include "longstride/error.h"
#include "pattern/random_specs.h"
#include "pattern/work.h"

namespace longstride {
namespace {

TEST(Picture, CellsLineUpWithStrides) {
  EXPECT_EQ(Grid(48, 48).size, 1);
  EXPECT_EQ(Grid(49, 48).size, 2);
  EXPECT_EQ(Grid(12288, 384).size, 32);
  EXPECT_EQ(Grid(12288, 384).cells, 384);
  EXPECT_EQ(Grid(1, 2).cells, 1);
}

TEST(Picture, SharesEqualBruteForce) {
  for (std::uint64_t n = 0; n < 120; ++n) {
    test::Dice dice(n);
    const HeadPattern head = test::random_head(dice);
    const std::int64_t length = dice.in(1, 80);
    const Grid grid(length, dice.in(2, 60));
    SCOPED_TRACE(text(to_string(head), ", length ", length, ", cells ", grid.cells));
    std::vector<double> kept(static_cast<std::size_t>(grid.cells * grid.cells)), pairs = kept;
    for (Position i = 0; i < length; ++i) {
      for (Position j = 0; j <= i; ++j) {
        const std::size_t cell = grid.index(i / grid.size, j / grid.size);
        kept[cell] += head.attends(i, j);
        ++pairs[cell];
      }
    }
    Panel panel;
    const AttentionPlan plan({head}, length);
    for (const PartPlan& part : plan.kinds[0].parts)
      panel.parts.push_back({"", 0, cell_shares(part, grid)});
    for (std::size_t cell = 0; cell < kept.size(); ++cell)
      ASSERT_NEAR(panel.share(cell), pairs[cell] > 0 ? kept[cell] / pairs[cell] : 0, 1e-6) << cell;
  }
}

// At a length where cells are sampled the whole must still weigh what count_work says.
TEST(Picture, SampledSharesAddUp) {
  for (const char* spec : {"strided(256)", "fixed(256, 32)", "column(200) + local(700)",
                           "random(3, 1, 64) + global(100)", "previous_row(512) + dense"}) {
    const std::int64_t length = 8192;
    const AttentionPlan plan(parse_pattern(spec).heads(1), length);
    const Grid grid(length, 64);
    double kept = 0;
    for (const PartPlan& part : plan.kinds[0].parts) {
      const std::vector<float> shares = cell_shares(part, grid);
      for (std::int64_t row = 0; row < grid.cells; ++row)
        for (std::int64_t column = 0; column <= row; ++column) {
          const auto size = static_cast<double>(grid.size);
          kept += static_cast<double>(shares[grid.index(row, column)]) *
                  (row == column ? size * (size + 1) / 2 : size * size);
        }
    }
    const auto pairs = static_cast<double>(count_work(plan.kinds[0], length, 64).pairs);
    EXPECT_NEAR(kept / pairs, 1, 0.03) << spec;
  }
}

TEST(Picture, InkGrowsWithTheShare) {
  EXPECT_EQ(ink(0), 0);
  EXPECT_DOUBLE_EQ(ink(1), 1);
  EXPECT_GT(ink(0.001), 0.25);
  EXPECT_LT(ink(0.1), ink(0.2));
}

TEST(Picture, TextOfEachWidth) {
  EXPECT_EQ(draw_pattern_text({.spec = "local(2), fixed(2, 1)", .length = 4}, 8),
            "head 0: ▓ local(2)\n"
            "██\n"
            "▓▓██\n"
            "· ▓▓██\n"
            "· · ▓▓██\n"
            "\n"
            "head 1: ▓ row(2) + ▒ summary(2, 1, 1)\n"
            "██\n"
            "▓▓██\n"
            "▒▒· ██\n"
            "▒▒· ▓▓██\n"
            "\n"
            "all heads: ▓ local(2) + ▒ row(2) + ░ summary(2, 1)\n"
            "██\n"
            "▓▓██\n"
            "░░▓▓██\n"
            "░░· ▓▓██\n");
  EXPECT_EQ(draw_pattern_text({.spec = "local(2)", .length = 5}, 5),
            "head 0: local(2)\n"
            "█▄\n"
            "·▀█▄\n"
            "···▀▀\n");
  EXPECT_EQ(draw_pattern_text({.spec = "local(2)", .length = 16}, 4),
            "head 0: local(2)\n"
            "██\n"
            "·▒██\n");
  EXPECT_THROW(draw_pattern_text({.spec = "dense", .length = 4}, 1), Error);
}

TEST(Picture, TextKeepsItsWidth) {
  for (const std::int64_t length : {1, 7, 24, 25, 48, 49, 1000, 100000}) {
    const std::string drawn = draw_pattern_text({.spec = "strided(16)", .length = length}, 48);
    std::int64_t widest = 0, width = 0, lines = 0;
    for (const char c : drawn.substr(drawn.find('\n') + 1)) {
      if (c == '\n') {
        widest = std::max(widest, std::exchange(width, 0));
        ++lines;
      } else if ((static_cast<unsigned char>(c) & 0xc0) != 0x80) {
        ++width;  // a character begins here
      }
    }
    EXPECT_LE(widest, 48) << length;
    EXPECT_LE(lines, 48) << length;
  }
}

struct Decoded {
  std::int64_t width = 0, height = 0;
  std::vector<std::uint8_t> pixels;

  explicit Decoded(const std::string& bytes) {
    png_image image{};
    image.version = PNG_IMAGE_VERSION;
    if (png_image_begin_read_from_memory(&image, bytes.data(), bytes.size()) == 0) return;
    image.format = PNG_FORMAT_RGB;
    pixels.resize(PNG_IMAGE_SIZE(image));
    png_image_finish_read(&image, nullptr, pixels.data(), 0, nullptr);
    width = image.width;
    height = image.height;
  }
  Colour at(std::int64_t x, std::int64_t y) const {
    const auto p = static_cast<std::size_t>((y * width + x) * 3);
    return {pixels[p], pixels[p + 1], pixels[p + 2]};
  }
};

TEST(Picture, CanvasClipsAndDecodes) {
  Canvas canvas(7, 5);
  canvas.fill(-3, -3, 5, 5, {10, 20, 30});
  canvas.fill(5, 4, 100, 100, {40, 50, 60});
  const Decoded image(canvas.png());
  ASSERT_EQ(image.width, 7);
  ASSERT_EQ(image.height, 5);
  EXPECT_EQ(image.at(1, 1), (Colour{10, 20, 30}));
  EXPECT_EQ(image.at(2, 2), (Colour{255, 255, 255}));
  EXPECT_EQ(image.at(6, 4), (Colour{40, 50, 60}));
}

// The mask of a picture is found again in its pixels: its lower right corner is known from the
// margin, its cells are 16 pixels for 32 positions.
TEST(Picture, PngShowsThePairs) {
  const auto file =
      std::filesystem::temp_directory_path() / text("longstride-", ::getpid(), ".png");
  draw_pattern_png({.spec = "row(8) + summary(8, 2)", .length = 32}, file);
  const Decoded image(read_file(file));
  std::filesystem::remove(file);
  const HeadPattern head = parse_pattern("row(8) + summary(8, 2)").heads(1)[0];
  const std::int64_t pixels = 16, margin = 40;
  ASSERT_EQ(image.width, 2 * margin + 32 * pixels);
  std::map<Colour, std::int64_t> colours[2];  // of pairs that are not kept, and kept
  for (Position i = 0; i < 32; ++i)
    for (Position j = 0; j < i; ++j)
      ++colours[head.attends(i, j)]
               [image.at(margin + j * pixels + 8, image.height - margin - (32 - i) * pixels + 8)];
  EXPECT_EQ(colours[0].size(), 1u);
  EXPECT_EQ(colours[1].size(), 2u);  // one a part
  EXPECT_EQ(colours[1].count(colours[0].begin()->first), 0u);
  EXPECT_EQ(image.at(margin + 20 * pixels, image.height - margin - 32 * pixels + 8),
            (Colour{255, 255, 255}));
}

TEST(Picture, PngNamesTheFolderThatIsMissing) {
  try {
    draw_pattern_png({.spec = "dense", .length = 8}, "/nowhere/at/all.png");
    FAIL();
  } catch (const Error& e) {
    EXPECT_EQ(e.fault, Fault::environment);
    EXPECT_NE(std::string(e.what()).find("/nowhere/at/all.png"), std::string::npos) << e.what();
  }
}

}  // namespace
}  // namespace longstride
