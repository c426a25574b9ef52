// The grammar: what is read, what is refused and how, and that no bytes at all make it crash.
#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>

#include "longstride/error.h"
#include "longstride/pattern.h"
#include "pattern/random_specs.h"

namespace longstride {
namespace {

std::string message(std::string_view spec) {
  try {
    parse_pattern(spec);
  } catch (const Error& e) {
    EXPECT_EQ(e.fault, Fault::invalid_argument);
    return e.what();
  }
  return "";
}

// A file that is gone at the end of the test.
struct TemporaryFile {
  std::filesystem::path path = std::filesystem::temp_directory_path() /
                               text("longstride pattern ", ::getpid(), " {mask}, 1.txt");
  explicit TemporaryFile(const std::string& content) { std::ofstream(path) << content; }
  ~TemporaryFile() { std::filesystem::remove(path); }
  std::string spec() const { return text("blocks(", path.string(), ")"); }
};

TEST(Parse, CanonicalSpelling) {
  const auto spelled = [](std::string_view spec) { return to_string(parse_pattern(spec)); };
  EXPECT_EQ(spelled("local(8)"), "local(8)");
  EXPECT_EQ(spelled(" 3 * local( 8 ),\n\tcolumn(8)+row(2) "), "3*local(8), column(8) + row(2)");
  EXPECT_EQ(spelled("strided(96)"), "local(96) + column(96)");
  EXPECT_EQ(spelled("fixed(128,32)"), "row(128) + summary(128, 32)");
  EXPECT_EQ(spelled("summary(128,32,1)"), "summary(128, 32, 1)");
  EXPECT_EQ(spelled("random(2, 18446744073709551615)"), "random(2, 18446744073709551615, 32)");
  EXPECT_EQ(spelled("dense,global(4)+previous_row(8)"), "dense, global(4) + previous_row(8)");
  EXPECT_EQ(parse_pattern(" dense").spec, " dense");
}

TEST(Parse, RoundTrip) {
  for (std::uint64_t seed = 0; seed < 500; ++seed) {
    test::Dice dice(seed);
    LayerPattern layer;
    for (std::int64_t kinds = dice.in(1, 4); kinds > 0; --kinds) {
      layer.kinds.push_back(test::random_head(dice));
      layer.kinds.back().weight = dice.in(1, 3);
      for (Part& part : layer.kinds.back().parts)
        if (std::holds_alternative<Blocks>(part)) part = Dense{};
    }
    const LayerPattern again = parse_pattern(to_string(layer));
    ASSERT_EQ(again.kinds.size(), layer.kinds.size());
    for (std::size_t k = 0; k < layer.kinds.size(); ++k) {
      ASSERT_EQ(again.kinds[k].weight, layer.kinds[k].weight);
      ASSERT_EQ(again.kinds[k].parts, layer.kinds[k].parts);
    }
  }
}

TEST(Parse, Messages) {
  const std::pair<std::string, std::string> cases[] = {
      {"local(0)", "pattern: \"local(0)\": window is 0, want at least 1"},
      {"dense + colum(8)",
       "pattern: \"colum\": no part has this name, did you mean column(stride)?"},
      {"fixed(8, 9)", "pattern: \"fixed(8, 9)\": width is 9, want at most the stride 8"},
      {"summary(8, 3, 2)",
       "pattern: \"summary(8, 3, 2)\": group is 2, want less than 2 (stride / width)"},
      {"row(8, 2)", "pattern: at character 6, \", 2)\": want \")\", as in row(stride)"},
      {"row", "pattern: \"row\": 0 arguments, want row(stride)"},
      {"random(3)", "pattern: \"random(3)\": 1 arguments, want random(count, seed [, block])"},
      {"0*dense", "pattern: \"0\": a weight is 0, want at least 1"},
      {"2 dense", "pattern: at character 3, \"dense\": want \"*\" behind the weight of a head"},
      {"", "pattern: \"\" ends too early: want a part, for example local(128)"},
      {"dense +", "pattern: \"dense +\" ends too early: want a part, for example local(128)"},
      {"dense dense", "pattern: at character 7, \"dense\": want \"+\", \",\" or the end"},
      {"local(-1)", "pattern: at character 7, \"-1)\": want a whole number that is not negative"},
      {"local(1099511627776)",
       "pattern: at character 7, \"1099511627776)\": number is too large, want less than "
       "1099511627776"},
      {"blocks( )", "pattern: at character 8, \" )\": want the name of a file, as in blocks(file)"},
      {"blocks(/nowhere/at/all)", "pattern: cannot read the blocks file \"/nowhere/at/all\""},
      {"blocks(/)", "pattern: cannot read the blocks file \"/\""},
  };
  for (const auto& [spec, want] : cases) EXPECT_EQ(message(spec), want);
}

TEST(Parse, Refuses) {
  for (const char* spec : {"Dense",
                           "local",
                           "local()",
                           "local(8",
                           "local 8",
                           "local(8))",
                           "local(8),",
                           ",local(8)",
                           "local(8)++dense",
                           "*dense",
                           "1.5*dense",
                           "local(1e3)",
                           "local(0x8)",
                           "local(+8)",
                           "local(99999999999999999999)",
                           "random(1, 18446744073709551616)",
                           "random(0, 1)",
                           "random(1, 1, 0)",
                           "summary(0, 0)",
                           "summary(8)",
                           "summary(8, 0)",
                           "summary(8, 9)",
                           "strided(0)",
                           "global(0)",
                           "row(0)",
                           "previous_row(0)",
                           "column(0)",
                           "blocks",
                           "blocks(a",
                           "blocks(a\n)",
                           "dense(8)",
                           "dense;",
                           "\xff\xfe",
                           "1099511627776*dense"})
    EXPECT_NE(message(spec), "") << spec;
  EXPECT_NE(message(std::string(70000, ' ') + "dense"), "");
  std::string parts = "dense", kinds = "dense";
  for (int n = 0; n < 16; ++n) parts += "+dense";
  for (int n = 0; n < 1024; ++n) kinds += ",dense";
  EXPECT_NE(message(parts), "");
  EXPECT_NE(message(kinds), "");
}

TEST(Parse, MutatedSpecsNeverCrash) {
  const std::string seeds[] = {"3*local(128), column(128)", "fixed(128, 32) + global(4)",
                               "random(2, 7, 16) + previous_row(64), strided(32)",
                               "summary(64, 8, 3), 2*dense", "blocks(mask.txt) + row(8)"};
  const std::string bytes = "0123456789()+*,abcdefglmnorstuw_ \n\t#-.\xff\x80";
  int good = 0;
  for (std::uint64_t n = 0; n < 40000; ++n) {
    test::Dice dice(n);
    std::string spec = seeds[n % 5];
    for (std::int64_t edits = dice.in(1, 6); edits > 0; --edits) {
      const auto at = static_cast<std::size_t>(dice.in(0, static_cast<std::int64_t>(spec.size())));
      const char byte = dice.in(0, 9) == 0 ? static_cast<char>(dice.in(0, 255))
                                           : bytes[static_cast<std::size_t>(dice.in(
                                                 0, static_cast<std::int64_t>(bytes.size()) - 1))];
      switch (dice.in(0, 3)) {
        case 0:
          spec.insert(at, 1, byte);
          break;
        case 1:
          spec.erase(at, static_cast<std::size_t>(dice.in(1, 4)));
          break;
        case 2:
          spec.insert(at, spec.substr(0, at));
          break;
        default:
          if (at < spec.size()) spec[at] = byte;
      }
    }
    try {
      const LayerPattern layer = parse_pattern(spec);
      ASSERT_EQ(to_string(parse_pattern(to_string(layer))), to_string(layer)) << spec;
      ++good;
    } catch (const Error& e) {
      ASSERT_EQ(e.fault, Fault::invalid_argument);
      ASSERT_EQ(std::string_view(e.what()).find('\n'), std::string_view::npos);
    }
  }
  EXPECT_GT(good, 100);
}

TEST(Parse, BlocksFile) {
  const TemporaryFile file("# a mask\n\nblock 4\n0\n1 0  # any order\n\n# no row\r\n3\t1\n");
  const LayerPattern layer = parse_pattern(file.spec() + " + local(1)");
  EXPECT_EQ(to_string(layer), file.spec() + " + local(1)");
  const auto& mask = std::get<Blocks>(layer.kinds[0].parts[0]);
  EXPECT_EQ(mask.block, 4);
  EXPECT_EQ(*mask.rows, (std::vector<std::vector<std::int64_t>>{{0}, {0, 1}, {}, {1, 3}}));
  EXPECT_TRUE(mask.attends(5, 2));
  EXPECT_FALSE(mask.attends(5, 6));
  EXPECT_FALSE(mask.attends(9, 8));
  EXPECT_FALSE(mask.attends(16, 0));
}

TEST(Parse, BlocksFileMessages) {
  const std::pair<std::string, std::string> cases[] = {
      {"", "line 0: is empty, want first a line \"block 32\""},
      {"0\n", "line 1: starts with \"0\", want first a line \"block 32\""},
      {"block 0\n", "line 1: block is 0, want at least 1"},
      {"block x\n", "line 1: \"x\" is no number from 0 to 1099511627775"},
      {"block 4\n0\n0 2\n", "line 3: query block 1 names key block 2, want at most 1"},
      {"block 4\n0\n1 1\n", "line 3: query block 1 names key block 1 twice"},
      {"block 4\n-1\n", "line 2: \"-1\" is no number from 0 to 1099511627775"},
      {"block 4\n0x1\n", "line 2: \"0x1\" is no number from 0 to 1099511627775"},
  };
  for (const auto& [content, want] : cases) {
    const TemporaryFile file(content);
    const std::string got = message(file.spec());
    EXPECT_EQ(got.substr(std::min(got.size(), got.find("line "))), want);
  }
}

}  // namespace
}  // namespace longstride
