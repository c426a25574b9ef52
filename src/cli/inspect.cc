// longstride inspect: patterns, presets, runs and checkpoints.
#include "longstride/inspect.h"

#include <fmt/format.h>

#include "cli/command.h"
#include "cli/inspect_artifact.h"
#include "cli/output.h"
#include "longstride/config.h"
#include "longstride/error.h"

namespace longstride::cli {

namespace {

using Json = nlohmann::ordered_json;

constexpr const char* kPatternFooter =
    R"text(Parts: dense local(w) column(l) row(l) summary(l, c[, g]) previous_row(l) global(g)
random(r, seed[, b]) blocks(file); + is one softmax over a union, "," and n* give heads.
Aliases: strided(l) = local(l) + column(l), fixed(l, c) = row(l) + summary(l, c).

Examples:
  longstride inspect pattern "fixed(128, 32)" --length 12288
  longstride inspect pattern "2*local(64), column(64)" --length 4096 --png heads.png --json)text";

constexpr const char* kPresetFooter = R"text(Examples:
  longstride inspect preset enwik8-95m --json
  longstride inspect preset small-text > my.toml)text";

constexpr std::int64_t kPictureCells = 48;

Json to_json(const HeadReport& h) {
  return {{"parts", h.parts},
          {"count", h.heads},
          {"pairs", h.pairs},
          {"blocks", h.blocks},
          {"density", h.density},
          {"cache_keys", h.cache_keys},
          {"read_keys", h.read_keys},
          {"forward_flops", h.forward_flops},
          {"backward_flops", h.backward_flops},
          {"forward_bytes", h.forward_bytes},
          {"backward_bytes", h.backward_bytes}};
}

Json to_json(const PatternReport& r) {
  Json heads = Json::array();
  for (const HeadReport& head : r.kinds) heads.push_back(to_json(head));
  return {{"pattern", r.pattern}, {"expanded", r.expanded},     {"length", r.length},
          {"block", r.block},     {"head_width", r.head_width}, {"heads", heads},
          {"pairs", r.pairs}};
}

std::string describe(const HeadReport& h, std::int64_t block) {
  return fmt::format(
      "{} x {}\n"
      "  kept pairs   {} ({:.2f} % of causal)\n"
      "  blocks       {} of {} x {}\n"
      "  forward      {}flop, {}B a head\n"
      "  backward     {}flop, {}B a head\n"
      "  sampler      keeps {} keys, reads {} a step\n",
      h.heads, fmt::join(h.parts, " + "), with_commas(h.pairs), 100 * h.density,
      with_commas(h.blocks), block, block, with_unit(h.forward_flops), with_unit(h.forward_bytes),
      with_unit(h.backward_flops), with_unit(h.backward_bytes), with_commas(h.cache_keys),
      with_commas(h.read_keys));
}

int pattern_command(const PatternOptions& options, const std::string& png, bool json) {
  const PatternReport report = inspect_pattern(options);
  if (!png.empty()) draw_pattern_png(options, png);
  if (json) {
    print_json(to_json(report));
    return 0;
  }
  std::string out = fmt::format("{}\n", report.pattern);
  if (report.expanded != report.pattern) out += fmt::format("= {}\n", report.expanded);
  out += fmt::format("length {}, head width {}, all heads together {} pairs\n\n",
                     with_commas(report.length), report.head_width, with_commas(report.pairs));
  for (const HeadReport& head : report.kinds) out += describe(head, report.block);
  print(out + "\n" + draw_pattern_text(options, kPictureCells) + "\n");
  return 0;
}

int presets_command(bool json) {
  Json list = Json::array();
  std::string lines;
  for (const Preset& preset : presets()) {
    const std::int64_t parameters = count_parameters(load_config(preset.name).model);
    list.push_back(
        {{"name", preset.name}, {"parameters", parameters}, {"description", preset.description}});
    lines += fmt::format("{:<16} {:>11}  {}\n", preset.name, with_commas(parameters),
                         preset.description);
  }
  json ? print_json(list) : print(lines);
  return 0;
}

int preset_command(const std::string& name, const std::vector<std::string>& settings, bool json) {
  const Config config = load_config(name, settings);
  const std::int64_t parameters = count_parameters(config.model);
  if (!json) {
    print(fmt::format("# {} parameters\n{}", with_commas(parameters), to_toml(config)));
    return 0;
  }
  Json fields;
  visit_fields(config, [&](const std::string& key, const auto& value, const char*) {
    fields[Json::json_pointer(
        "/" + fmt::format("{}", fmt::join(CLI::detail::split(key, '.'), "/")))] = value;
  });
  Json document = {{"name", config.name},
                   {"parameters", parameters},
                   {"position_axes", config.model.position_axes()}};
  document.update(fields);
  print_json(document);
  return 0;
}

void add_pattern(Program& program, CLI::App& inspect) {
  struct InspectArguments {
    PatternOptions options;
    std::string png;
  };
  CLI::App* command = add_command(program, inspect, "pattern",
                                  "Work, sampler's cache and picture of a pattern", kPatternFooter);
  auto a = std::make_shared<InspectArguments>();
  command->add_option("SPEC", a->options.spec, "the pattern")->required()->type_name("");
  command->add_option("--length", a->options.length, "positions of the sequence")
      ->required()
      ->check(at_least(1))
      ->type_name("N");
  command->add_option("--block", a->options.block, "side of the blocks counted (32)")
      ->check(at_least(1))
      ->type_name("B");
  command->add_option("--heads", a->options.heads, "heads; 0: as many as the pattern names")
      ->check(at_least(0))
      ->type_name("H");
  command->add_option("--head-width", a->options.head_width, "for flops and bytes (64)")
      ->check(at_least(1))
      ->type_name("D");
  command->add_option("--png", a->png, "write the picture to this file")->type_name("FILE");
  set_action(program, command, [a, &globals = program.globals] {
    return pattern_command(a->options, a->png, globals.json);
  });
}

void add_presets(Program& program, CLI::App& inspect) {
  CLI::App* list = add_command(program, inspect, "presets", "The presets, one a line", "");
  set_action(program, list, [&globals = program.globals] { return presets_command(globals.json); });

  struct InspectArguments {
    std::string name;
    std::vector<std::string> settings;
  };
  CLI::App* one =
      add_command(program, inspect, "preset",
                  "One preset or TOML file, resolved, and its parameters", kPresetFooter);
  auto a = std::make_shared<InspectArguments>();
  one->add_option("PRESET|FILE", a->name, "preset by name, or a TOML file")
      ->required()
      ->type_name("");
  one->add_option("SETTINGS", a->settings, "key=value, as in the file")->type_name("");
  set_action(program, one, [a, &globals = program.globals] {
    return preset_command(a->name, a->settings, globals.json);
  });
}

void add_artifact(Program& program, CLI::App& inspect, const char* name, const char* description) {
  CLI::App* command = add_command(program, inspect, name, description, "");
  auto path = std::make_shared<std::string>();
  command->add_option("FILE", *path, "run folder, checkpoint folder or safetensors file")
      ->required()
      ->type_name("");
  set_action(program, command,
             [path, &globals = program.globals] { return artifact_command(*path, globals.json); });
}

}  // namespace

void add_inspect(Program& program) {
  CLI::App* inspect =
      program.app.add_subcommand("inspect", "What a pattern, a preset, a run or a checkpoint is");
  inspect->require_subcommand(1);
  add_pattern(program, *inspect);
  add_presets(program, *inspect);
  add_artifact(program, *inspect, "run", "Config and checkpoints of a run folder");
  add_artifact(program, *inspect, "checkpoint", "Tensors of a checkpoint or safetensors file");
}

}  // namespace longstride::cli
