#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <random>

#include "longstride/config.h"
#include "longstride/error.h"
#include "model/nearest.h"

namespace longstride {
namespace {

std::string message_of(const std::string& toml, const std::vector<std::string>& overrides = {}) {
  try {
    parse_config(toml, "file.toml", overrides);
  } catch (const Error& e) {
    EXPECT_EQ(exit_code(e.fault), 2) << e.what();
    return e.what();
  }
  return "accepted";
}

TEST(Config, PublishedModelsHaveThePublishedNumberOfParameters) {
  EXPECT_EQ(count_parameters(load_config("enwik8-95m").model), 94'949'888);
  EXPECT_EQ(count_parameters(load_config("cifar10-59m").model), 59'196'928);
  EXPECT_EQ(count_parameters(load_config("imagenet64-152m").model), 151'645'184);
  EXPECT_EQ(count_parameters(load_config("imagenet64-300m").model), 302'959'616);
}

TEST(Config, AudioPresetsAreNearTheirPublishedSizes) {
  const std::vector<std::pair<std::string, double>> sizes = {
      {"music-152m-65k", 152e6}, {"music-25m-262k", 25e6}, {"music-3m-1m", 3e6}};
  for (const auto& [name, size] : sizes)
    EXPECT_NEAR(static_cast<double>(count_parameters(load_config(name).model)), size, 0.05 * size)
        << name;
}

// Counted by hand from the table of facts: the layer of d = 256, qk = 128, ff = 512.
TEST(Config, OneLayerMoreCostsWhatTheFormulaSays) {
  ModelConfig model = load_config("cifar10-59m").model;
  const std::int64_t before = count_parameters(model);
  ++model.layers;
  EXPECT_EQ(count_parameters(model) - before, 461'312);
}

TEST(Config, EveryPresetIsValidAndNamedAsItsFile) {
  EXPECT_GE(presets().size(), 11u);
  for (const Preset& preset : presets()) {
    const Config config = load_config(preset.name);
    EXPECT_EQ(config.name, preset.name);
    EXPECT_FALSE(config.description.empty());
    EXPECT_EQ(config.description.find('\n'), std::string::npos);
  }
}

TEST(Config, PositionAxesFollowTheFirstStride) {
  ModelConfig model;
  model.context = 12288;
  model.attention = {"dense", "fixed(128, 32)"};
  EXPECT_EQ(model.position_axes(), (std::vector<std::int64_t>{96, 128}));
  model.context = 12289;
  EXPECT_EQ(model.position_axes(), (std::vector<std::int64_t>{97, 128}));
  model.attention = {"global(4), local(96)"};
  EXPECT_EQ(model.position_axes(), (std::vector<std::int64_t>{129, 96}));
  model.attention = {"local(2), local(96)", "local(4), strided(128)"};  // a stride beats windows
  EXPECT_EQ(model.position_axes(), (std::vector<std::int64_t>{97, 128}));
  model.attention = {"local(2), local(96), local(4)"};  // the widest
  EXPECT_EQ(model.position_axes(), (std::vector<std::int64_t>{129, 96}));
  model.attention = {"dense"};
  model.context = 1000;
  EXPECT_EQ(model.position_axes(), (std::vector<std::int64_t>{32, 32}));
  model.context = 7;
  model.attention = {"local(128)"};  // a stride beyond the context needs no rows
  EXPECT_EQ(model.position_axes(), (std::vector<std::int64_t>{1, 7}));
  model.axes = {2, 2, 2};
  EXPECT_EQ(model.position_axes(), (std::vector<std::int64_t>{2, 2, 2}));
}

TEST(Config, TomlRoundTripIsExact) {
  for (const Preset& preset : presets()) {
    const Config config = load_config(preset.name);
    EXPECT_EQ(parse_config(to_toml(config), "again"), config) << to_toml(config);
  }
  std::mt19937_64 rng(7);
  std::uniform_real_distribution<double> share(0, 1);
  for (int round = 0; round < 200; ++round) {
    Config config;
    config.name = std::string("quote \" back \\ tab \t line \n unit \x01 \x7f é ") +
                  static_cast<char>('a' + rng() % 26);
    config.model.dropout = share(rng);
    config.model.axes = {static_cast<std::int64_t>(1024 + rng() % 9), 3};
    config.model.attention = {"dense", "local(8), 3*row(4)"};
    config.train.lr = share(rng) * std::pow(10.0, static_cast<int>(rng() % 600) - 290);
    config.train.eps = std::numeric_limits<double>::denorm_min();
    config.train.clip = static_cast<double>(rng() % 3);
    config.train.beta2 = std::nextafter(1.0, 0.0);
    config.train.seed = rng() >> 1;
    ASSERT_EQ(parse_config(to_toml(config), "again"), config) << to_toml(config);
  }
}

TEST(Config, OverridesAreTomlValuesOrBareStringsAndTheLaterWins) {
  const Config config = parse_config(
      "model.layers = 3\n[train]\nlr = 1\n", "file.toml",
      {"model.layers=5", "train.lr=1e-4", "model.attention=fixed(32,8)", "model.layers=0x10",
       "name=a # b = c", "model.axes=[64,64]", "train.recompute=\"on\"", "model.heads=8"});
  EXPECT_EQ(config.model.layers, 16);
  EXPECT_EQ(config.train.lr, 1e-4);
  EXPECT_EQ(config.model.attention, std::vector<std::string>{"fixed(32,8)"});
  EXPECT_EQ(config.name, "a # b = c");
  EXPECT_EQ(config.model.axes, (std::vector<std::int64_t>{64, 64}));
  EXPECT_EQ(config.train.recompute, "on");

  const Config list =
      parse_config("", "file.toml", {R"x(model.attention=["local(8)", "column(8)"])x"});
  EXPECT_EQ(list.model.attention, (std::vector<std::string>{"local(8)", "column(8)"}));
}

TEST(Config, WindowsLineEndsAndByteOrderMarkAreAccepted) {
  EXPECT_EQ(parse_config("\xef\xbb\xbf[model]\r\nlayers = 2\r\n", "f").model.layers, 2);
}

TEST(Config, ErrorsNameThePlaceTheValueAndWhatWasWanted) {
  EXPECT_EQ(message_of("[model]\nlayer = 3"),
            "config: file.toml:2: unknown key model.layer, did you mean model.layers?");
  EXPECT_EQ(message_of("", {"layers=3"}),
            "config: layers=3: unknown key layers, did you mean model.layers?");
  EXPECT_EQ(message_of("", {"model.lr=3"}),
            "config: model.lr=3: unknown key model.lr, did you mean train.lr?");
  EXPECT_EQ(message_of("\n\n[train]\nbatch = 1.5"),
            "config: file.toml:4: train.batch is a number with a point, want an integer");
  EXPECT_EQ(message_of("", {"model.layers=abc"}),
            "config: model.layers=abc: model.layers is a string, want an integer");
  EXPECT_EQ(message_of("", {"model.width=100", "model.heads=8"}),
            "config: model.width 100 is not a multiple of model.heads 8");
  EXPECT_EQ(message_of("model = 3"), "config: file.toml:1: model is an integer, want a table");
  EXPECT_EQ(message_of("", {"model.layers"}),
            "config: 'model.layers' is not of the form key=value");
  EXPECT_TRUE(message_of("[model]\nlayers =").starts_with("config: file.toml:2: "));
}

// Each is one refusal of exit code 2, never a crash, whatever the numbers.
TEST(Config, OutOfRangeValuesAreRefused) {
  const std::vector<std::string> bad = {"model.layers=0",
                                        "model.layers=10001",
                                        "model.layers=9223372036854775808",
                                        "model.width=0",
                                        "model.width=-64",
                                        "model.width=9223372036854775807",
                                        "model.heads=0",
                                        "model.heads=3",
                                        "model.qk_width=6",
                                        "model.qk_width=-4",
                                        "model.ff_width=-1",
                                        "model.context=0",
                                        "model.context=2147483649",
                                        "model.axes=[0, 5000]",
                                        "model.axes=[4, 4]",
                                        "model.axes=[\"4\"]",
                                        "model.axes=[2147483648, 2147483648, 2147483648, -1]",
                                        "model.axes=[1,1,1,1,1,1,1,1,1024]",
                                        "model.attention=[]",
                                        "model.attention=",
                                        "model.attention=local(0)",
                                        "model.attention=nonsense",
                                        "model.attention=[1]",
                                        "model.attention=3*dense, local(4),local(2)",
                                        "model.attention=[[\"dense\"]]",
                                        "model.dropout=1",
                                        "model.dropout=-0.1",
                                        "model.dropout=nan",
                                        "train.steps=0",
                                        "train.batch=0",
                                        "train.micro_batch=3",
                                        "train.micro_batch=-1",
                                        "train.micro_batch=16",
                                        "train.lr=0",
                                        "train.lr=inf",
                                        "train.lr=nan",
                                        "train.lr=-1",
                                        "train.warmup=-1",
                                        "train.final_lr=-1",
                                        "train.beta1=1",
                                        "train.beta2=1.5",
                                        "train.eps=0",
                                        "train.weight_decay=-1",
                                        "train.weight_decay=inf",
                                        "train.clip=-1",
                                        "train.ema=1",
                                        "train.seed=-1",
                                        "train.seed=1.0",
                                        "train.seed=true",
                                        "train.recompute=maybe",
                                        "train.recompute=1",
                                        "train.validate_every=-1",
                                        "train.validate_symbols=0",
                                        "train.checkpoint_every=-1",
                                        "train.keep_checkpoints=0",
                                        "train.on_nonfinite=ignore",
                                        "=3",
                                        "model=3",
                                        "train.lr=1979-05-27",
                                        "name=\xff\xfe",
                                        "model.layers=3\nmodel.width=8"};
  for (const std::string& one : bad) {
    const std::string message = message_of("", {one});
    EXPECT_NE(message, "accepted") << one;
    EXPECT_TRUE(message.starts_with("config: ")) << message;
  }
  EXPECT_NE(message_of("", {"model.width=1048576", "model.layers=10000"}), "accepted");
}

TEST(Config, MalformedTomlIsRefused) {
  const std::vector<std::string> bad = {"[model",
                                        "model.layers = ",
                                        "a = b",
                                        "[model]\n[model]\n",
                                        std::string("a\0b", 3),
                                        "\xff\xfe",
                                        "name = \"open",
                                        "[[model]]\nlayers = 1",
                                        "[model.layers]\nx = 1",
                                        "name = 'a'\nname = 'b'",
                                        "x = " + std::string(5000, '[')};
  for (const std::string& toml : bad) EXPECT_NE(message_of(toml), "accepted") << toml;
}

TEST(Config, UnknownPresetNamesTheNearest) {
  try {
    load_config("enwik-95m");
    FAIL();
  } catch (const Error& e) {
    EXPECT_NE(std::string(e.what()).find("enwik8-95m"), std::string::npos) << e.what();
  }
}

TEST(Nearest, EditDistance) {
  EXPECT_EQ(edit_distance("", ""), 0);
  EXPECT_EQ(edit_distance("", "abc"), 3);
  EXPECT_EQ(edit_distance("abc", ""), 3);
  EXPECT_EQ(edit_distance("kitten", "sitting"), 3);
  EXPECT_EQ(edit_distance("flaw", "lawn"), 2);
}

}  // namespace
}  // namespace longstride
