#include "files/safetensors.h"

#include <gtest/gtest.h>

#include <array>
#include <bit>
#include <chrono>
#include <limits>
#include <random>

#include "files/checkpoint.h"
#include "files/files.h"
#include "temporary_folder.h"

namespace longstride {

namespace {

using test::put;
using test::TemporaryFolder;
using test::throws;

std::string length_bytes(std::uint64_t n) {
  std::string bytes;
  for (int i = 0; i < 8; ++i) bytes += static_cast<char>(n >> (8 * i) & 0xff);
  return bytes;
}

std::string file_of(const std::string& json, std::size_t data_bytes) {
  return length_bytes(json.size()) + json + std::string(data_bytes, '\0');
}

SafetensorsHeader parse(const std::string& file) {
  return parse_safetensors_header(file, static_cast<std::int64_t>(file.size()), "f.safetensors");
}

std::string entry(const std::string& name, const std::string& dtype, const std::string& shape,
                  const std::string& offsets) {
  return "\"" + name + "\":{\"dtype\":\"" + dtype + "\",\"shape\":" + shape +
         ",\"data_offsets\":" + offsets + "}";
}

TEST(SafetensorsReader, ReadsEveryTypeAndOrder) {
  const std::array<std::pair<const char*, int>, 15> types = {{{"BOOL", 1},
                                                              {"U8", 1},
                                                              {"I8", 1},
                                                              {"F8_E5M2", 1},
                                                              {"F8_E4M3", 1},
                                                              {"I16", 2},
                                                              {"U16", 2},
                                                              {"F16", 2},
                                                              {"BF16", 2},
                                                              {"I32", 4},
                                                              {"U32", 4},
                                                              {"F32", 4},
                                                              {"F64", 8},
                                                              {"I64", 8},
                                                              {"U64", 8}}};
  std::string json;
  std::int64_t at = 0;
  for (const auto& [dtype, bytes] : types) {
    const std::string range = "[" + std::to_string(at) + "," + std::to_string(at + 6 * bytes) + "]";
    // Each new entry goes first: the file's order is not the data's.
    json = entry(dtype, dtype, "[2,3]", range) + (json.empty() ? "" : "," + json);
    at += 6 * bytes;
  }
  const SafetensorsHeader header = parse(file_of("{" + json + "}  ", static_cast<std::size_t>(at)));
  ASSERT_EQ(header.tensors.size(), types.size());
  for (std::size_t i = 0; i < types.size(); ++i) {
    EXPECT_EQ(header.tensors[i].name, types[i].first);
    EXPECT_EQ(header.tensors[i].end - header.tensors[i].begin, 6 * types[i].second);
  }
}

TEST(SafetensorsReader, ReadsEdges) {
  EXPECT_TRUE(parse(file_of("{}", 0)).tensors.empty());
  const auto header = parse(file_of("{ \"__metadata__\" : {\"a\\n\\u00e4\\ud83d\\ude00\":\"\"},\n" +
                                        entry("scalar", "F32", "[]", "[0,4]") + ",\t" +
                                        entry("none", "F32", "[0, 5]", "[4,4]") + "," +
                                        entry("", "U8", "[1]", "[4,5]") + "}",
                                    5));
  ASSERT_EQ(header.tensors.size(), 3u);
  EXPECT_EQ(header.tensors[0].name, "scalar");
  EXPECT_EQ(header.tensors[1].shape, (std::vector<std::int64_t>{0, 5}));
  EXPECT_EQ(header.tensors[2].name, "");
  EXPECT_EQ(header.metadata.begin()->first, "a\n\xc3\xa4\xf0\x9f\x98\x80");
}

struct Bad {
  const char* what;
  std::string json;
  std::size_t data = 4;
  std::string wants = "";
};

std::vector<Bad> bad_headers() {
  const auto one = [](const char* shape, const char* offsets) {
    return "{" + entry("t", "F32", shape, offsets) + "}";
  };
  const auto two = [](const char* first, const char* second) {
    return "{" + entry("a", "U8", "[2]", first) + "," + entry("b", "U8", "[2]", second) + "}";
  };
  const std::string good = entry("t", "F32", "[1]", "[0,4]");
  return {
      {"empty header", "", 0, "want '{' first"},
      {"leading blank", " {" + good + "}", 4, "want '{' first"},
      {"list", "[]", 0, "want '{' first"},
      {"null", "null", 0},
      {"not JSON", "{t}", 0},
      {"open object", "{" + good},
      {"trailing comma", "{" + good + ",}"},
      {"text behind", "{" + good + "}x", 4, "only blanks"},
      {"NUL behind", "{" + good + "}" + std::string(1, '\0')},
      {"tensor twice", "{" + good + "," + good + "}", 4, "'t' stands twice"},
      {"tensor twice, escaped", "{" + good + "," + entry("\\u0074", "F32", "[0]", "[4,4]") + "}", 4,
       "'t' stands twice"},
      {"key twice",
       "{\"t\":{\"dtype\":\"F32\",\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4]}}", 4,
       "'dtype' stands twice"},
      {"metadata twice", "{\"__metadata__\":{},\"__metadata__\":{}," + good + "}", 4, "twice"},
      {"metadata key twice", "{\"__metadata__\":{\"a\":\"1\",\"a\":\"2\"}," + good + "}", 4,
       "twice"},
      {"metadata number", "{\"__metadata__\":{\"a\":1}," + good + "}"},
      {"metadata nested", "{\"__metadata__\":{\"a\":{}}," + good + "}"},
      {"metadata list", "{\"__metadata__\":[]," + good + "}"},
      {"unknown type", "{" + entry("t", "F31", "[1]", "[0,4]") + "}", 4, "'F31'"},
      {"lower case type", "{" + entry("t", "f32", "[1]", "[0,4]") + "}"},
      {"unknown key", "{\"t\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4],\"x\":\"\"}}",
       4, "'x'"},
      {"no shape", "{\"t\":{\"dtype\":\"F32\",\"data_offsets\":[0,4]}}", 4, "wants dtype, shape"},
      {"no tensor", "{\"t\":{}}"},
      {"tensor is a list", "{\"t\":[]}"},
      {"negative extent", one("[-1]", "[0,4]"), 4, "whole number"},
      {"float extent", one("[1.0]", "[0,4]"), 4, "whole number"},
      {"exponent", one("[1e0]", "[0,4]"), 4, "whole number"},
      {"plus", one("[+1]", "[0,4]")},
      {"zeros in front", one("[01]", "[0,4]"), 4, "whole number"},
      {"2^63", one("[9223372036854775808]", "[0,4]"), 4, "too large"},
      {"2^64", one("[18446744073709551616]", "[0,4]"), 4, "too large"},
      {"extent is text", one("[\"1\"]", "[0,4]")},
      {"shape is a number", one("1", "[0,4]")},
      {"shape too long",
       one(("[1" +
            [] {
              std::string more;
              for (int i = 0; i < 64; ++i) more += ",1";
              return more;
            }() +
            "]")
               .c_str(),
           "[0,4]"),
       4, "64 axes"},
      {"product overflows", one("[4294967296,4294967296]", "[0,4]"), 4, "overflows"},
      {"bytes overflow", one("[2305843009213693952]", "[0,4]"), 4, "overflows"},
      {"overflow before zero", one("[4294967296,4294967296,0]", "[0,0]"), 0, "overflows"},
      {"size differs", one("[2]", "[0,4]"), 4, "has 4 bytes"},
      {"offset negative", one("[1]", "[-4,0]")},
      {"three offsets", one("[1]", "[0,4,4]")},
      {"one offset", one("[1]", "[4]")},
      {"end before begin", one("[1]", "[4,0]")},
      {"end beyond file", one("[2]", "[0,8]"), 4, "within 4"},
      {"begin not zero", one("[1]", "[4,8]"), 8, "begin at 0"},
      {"missing bytes", one("[1]", "[0,4]"), 3},
      {"tail bytes", one("[1]", "[0,4]"), 5, "the file at 5"},
      {"overlap", two("[0,2]", "[1,3]"), 3, "begin at 2"},
      {"same place", two("[0,2]", "[0,2]"), 2},
      {"hole", two("[0,2]", "[3,5]"), 5, "begin at 2"},
      {"tensors missing", "{}", 1},
      {"not UTF-8", "{\"t\xff\":1}", 4, "not UTF-8"},
      {"overlong UTF-8", "{\"\xc0\xaf\":1}", 4, "not UTF-8"},
      {"surrogate in UTF-8", "{\"\xed\xa0\x80\":1}", 4, "not UTF-8"},
      {"beyond Unicode", "{\"\xf4\x90\x80\x80\":1}", 4, "not UTF-8"},
      {"cut UTF-8", "{\"\xe2\x82\":1}", 4, "not UTF-8"},
      {"control character", "{\"a\nb\":1}", 4, "control character"},
      {"bad escape", "{\"\\x\":1}", 4, "escape"},
      {"lone high surrogate", "{\"\\ud800\":1}", 4, "surrogate"},
      {"lone low surrogate", "{\"\\udc00\":1}", 4, "surrogate"},
      {"two high surrogates", "{\"\\ud800\\ud800\":1}", 4, "surrogate"},
      {"short \\u", "{\"\\u12\":1}", 4, "hexadecimal"},
      {"string without end", "{\"abc", 0, "does not end"},
      {"string ends in escape", "{\"abc\\", 0, "does not end"},
      {"depth bomb", "{\"a\":" + std::string(1'000'000, '[')},
      {"depth bomb of objects",
       [] {
         std::string deep;
         for (int i = 0; i < 100'000; ++i) deep += "{\"a\":";
         return deep;
       }()},
      {"comment", "{/**/}", 0},
      {"name of 1 MB", "{" + entry(std::string(1'000'000, 'n'), "F32", "[2]", "[0,4]") + "}"},
  };
}

TEST(SafetensorsReader, RefusesEveryBadHeaderInOneShortLine) {
  for (const Bad& bad : bad_headers()) {
    const auto start = std::chrono::steady_clock::now();
    try {
      parse(file_of(bad.json, bad.data));
      ADD_FAILURE() << bad.what << ": taken";
    } catch (const Error& error) {
      const std::string line = error.what();
      EXPECT_EQ(error.fault, Fault::invalid_argument) << bad.what;
      EXPECT_LE(line.size(), 200u) << bad.what << ": " << line;
      EXPECT_EQ(line.find('\n'), line.npos) << bad.what;
      EXPECT_NE(line.find("f.safetensors"), line.npos) << bad.what;
      EXPECT_NE(line.find(bad.wants), line.npos) << bad.what << ": " << line;
    }
    EXPECT_LT(std::chrono::steady_clock::now() - start, std::chrono::seconds(1)) << bad.what;
  }
}

TEST(SafetensorsReader, RefusesBadLengths) {
  const std::string good = file_of("{" + entry("t", "F32", "[1]", "[0,4]") + "}", 4);
  EXPECT_EQ(parse(good).tensors.size(), 1u);
  const auto bad = [](const std::string& file) {
    return throws(Fault::invalid_argument, {"f.safetensors"}, [&] { parse(file); });
  };
  EXPECT_TRUE(bad(""));
  EXPECT_TRUE(bad(good.substr(0, 7)));
  EXPECT_TRUE(bad(good.substr(0, 8)));
  const auto size = good.size() - 8;
  for (const std::uint64_t n :
       {std::uint64_t{0}, std::uint64_t{1}, std::uint64_t{size + 1}, std::uint64_t{100'000'001},
        std::uint64_t{1} << 63, ~std::uint64_t{0}})
    EXPECT_TRUE(bad(length_bytes(n) + good.substr(8))) << n;
  // Every truncation and every one with more bytes.
  for (std::size_t n = 0; n < good.size(); ++n) EXPECT_TRUE(bad(good.substr(0, n))) << n;
  EXPECT_TRUE(bad(good + "x"));
  // Less of the file given than its header needs.
  EXPECT_TRUE(throws(Fault::invalid_argument, {}, [&] {
    parse_safetensors_header(std::string_view(good).substr(0, 20),
                             static_cast<std::int64_t>(good.size()), "f");
  }));
}

TEST(SafetensorsReader, ManyTensorsStaySmall) {
  std::string json = "{";
  for (int i = 0; i < 1'000'000; ++i)
    json += (i ? ",\"" : "\"") + std::to_string(i) +
            "\":{\"dtype\":\"U8\",\"shape\":[],\"data_offsets\":[" + std::to_string(i) + "," +
            std::to_string(i + 1) + "]}";
  const auto start = std::chrono::steady_clock::now();
  EXPECT_EQ(parse(file_of(json + "}", 1'000'000)).tensors.size(), 1'000'000u);
  EXPECT_LT(std::chrono::steady_clock::now() - start, std::chrono::seconds(20));
  json += "," + entry("more", "U8", "[0]", "[0,0]") + "}";
  EXPECT_TRUE(throws(Fault::invalid_argument, {"more than 1000000 tensors"},
                     [&] { parse(file_of(json, 1'000'000)); }));
}

// Any change of one byte gives a header that is taken with a meaning, or one Error: nothing else.
TEST(SafetensorsReader, RandomDamageIsAnErrorOrAFile) {
  const std::string good =
      file_of("{\"__metadata__\":{\"k\":\"v\"}," + entry("a", "F32", "[2,3]", "[0,24]") + "," +
                  entry("b", "U8", "[0]", "[24,24]") + "}",
              24);
  std::mt19937 random(7);
  int taken = 0;
  for (int i = 0; i < 100'000; ++i) {
    std::string file = good;
    for (std::uint32_t n = 1 + random() % 3; n > 0; --n)
      file[random() % (file.size() - 24)] = static_cast<char>(random());
    try {
      for (const TensorEntry& t : parse(file).tensors)
        ASSERT_TRUE(t.begin >= 0 && t.begin <= t.end && t.end <= 24);
      ++taken;
    } catch (const Error&) {
    }
  }
  EXPECT_GT(taken, 0);
}

TEST(SafetensorsWriter, GoldenBytes) {
  const std::array<float, 6> a = {1, 2, 3, 4, 5, 6};
  const std::array<std::int64_t, 1> b = {-2};
  const std::string header = make_safetensors_header(
      {{"a/\"x\"", "F32", {2, 3}, a.data()}, {"b", "I64", {}, b.data()}}, {{"step", "7"}});
  const std::string json =
      "{\"__metadata__\":{\"format\":\"pt\",\"step\":\"7\"},"
      "\"a/\\\"x\\\"\":{\"dtype\":\"F32\",\"shape\":[2,3],\"data_offsets\":[0,24]},"
      "\"b\":{\"dtype\":\"I64\",\"shape\":[],\"data_offsets\":[24,32]}}";
  ASSERT_LE(json.size(), 184u);
  EXPECT_EQ(header,
            std::string("\xb8\0\0\0\0\0\0\0", 8) + json + std::string(184 - json.size(), ' '));
  EXPECT_EQ(header.size() % 64, 0u);
}

TEST(SafetensorsWriter, ReadsBackAndRefuses) {
  std::vector<TensorOut> tensors;
  std::mt19937 random(3);
  for (int i = 0; i < 50; ++i)
    tensors.push_back(
        {"t" + std::to_string(i),
         i % 2 ? "F32" : "BF16",
         {static_cast<std::int64_t>(random() % 5), static_cast<std::int64_t>(random() % 7)},
         nullptr});
  const std::string header = make_safetensors_header(tensors, {});
  std::int64_t bytes = static_cast<std::int64_t>(header.size());
  for (const TensorOut& t : tensors) bytes += byte_size(t);
  const SafetensorsHeader read = parse_safetensors_header(header, bytes, "f");
  ASSERT_EQ(read.tensors.size(), tensors.size());
  EXPECT_EQ(read.metadata.at("format"), "pt");
  const auto refused = [](const TensorOut& t) {
    return throws(Fault::invalid_argument, {}, [&] { make_safetensors_header({t, t}, {}); });
  };
  EXPECT_TRUE(refused({"twice", "F32", {1}, nullptr}));
  const auto alone = [](const TensorOut& t) {
    return throws(Fault::invalid_argument, {}, [&] { make_safetensors_header({t}, {}); });
  };
  EXPECT_TRUE(alone({"a", "F33", {1}, nullptr}));
  EXPECT_TRUE(alone({"a", "F32", {-1}, nullptr}));
  EXPECT_TRUE(alone({"a\xff", "F32", {1}, nullptr}));
  EXPECT_TRUE(alone({"__metadata__", "F32", {1}, nullptr}));
}

TEST(TensorFile, ReadsOnlyWhatIsAskedFor) {
  const TemporaryFolder folder;
  const std::array<float, 6> a = {1, 2, 3, 4, 5, -std::numeric_limits<float>::infinity()};
  const std::array<std::int32_t, 2> b = {1, 2};
  const std::vector<TensorOut> tensors = {{"a", "F32", {2, 3}, a.data()},
                                          {"b", "I32", {2}, b.data()}};
  std::string content = make_safetensors_header(tensors, {});
  content.append(reinterpret_cast<const char*>(a.data()), sizeof(a));
  content.append(reinterpret_cast<const char*>(b.data()), sizeof(b));
  put(folder / "f", content);
  const TensorFile file(folder / "f");
  std::array<float, 6> got = {};
  file.read("a", {2, 3}, got.data());
  EXPECT_EQ(got, a);
  EXPECT_TRUE(file.has("b"));
  EXPECT_FALSE(file.has("c"));
  const auto bad = [&](const char* name, const std::vector<std::int64_t>& shape, const char* why) {
    return throws(Fault::invalid_argument, {(folder / "f").native(), name, why},
                  [&] { file.read(name, shape, got.data()); });
  };
  EXPECT_TRUE(bad("c", {2}, "no tensor"));
  EXPECT_TRUE(bad("a", {3, 2}, "is F32 [2, 3], want F32 [3, 2]"));
  EXPECT_TRUE(bad("a", {6}, "[2, 3]"));
  EXPECT_TRUE(bad("b", {2}, "is I32 [2]"));
  put(folder / "g", content.substr(0, content.size() - 1));
  EXPECT_TRUE(throws(Fault::invalid_argument, {(folder / "g").native()},
                     [&] { TensorFile{folder / "g"}; }));
}

}  // namespace

}  // namespace longstride
