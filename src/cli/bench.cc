// longstride bench: how fast this machine runs it, beside what the machine can do.
#include <memory>

#include "cli/bench_report.h"
#include "cli/bench_train.h"
#include "cli/command.h"
#include "longstride/runtime.h"

namespace longstride::cli {

namespace {

constexpr const char* kBenchFooter =
    R"text(Everything is held against peaks measured in the same run: matrix products in f32 and bf16, and a
copy (bytes read + written). Times are those of the fastest call or step. --json adds the machine.)text";

constexpr const char* kAttentionFooter =
    R"text(First the parts and patterns of the paper, forward and backward; dense at a length of its own. Then
growth: forward + backward, B 1, H 4, D 64, of strided(sqrt N) and (to 8192) dense against N.

  Gflop/s   needed: of the pairs that the pattern keeps
  in tiles  of all pairs of the tiles computed
  floor     the larger of needed flops / matrix product and least bytes / copy, and its share of the
            time

Examples:
  longstride bench attention --parts --length 4096 --precision f32
  longstride bench attention --growth --max-length 262144 --json)text";

constexpr const char* kOpsFooter =
    R"text(Matrix products of models of width 256 and 512, and all other operations of a layer, at sizes that
stay in cache (whose share of the copy bandwidth may pass 100 %) and at sizes that do not.)text";

constexpr const char* kTrainFooter =
    R"text(Steps on random bytes in a temporary folder, after two that are not timed: tokens a second, needed
work and its share of the matrix product, memory, and the time by operation.
--growth: instead, steps of a model of width 256, 4 layers, 4 heads (half local(l), half column(l),
l = sqrt N), batch 1, for N = --min-length doubled up to --max-length, and the exponent of the time a
token.

Examples:
  longstride bench train --preset enwik8-95m --set model.layers=2 --set train.batch=1 --steps 3
  longstride bench train --growth --max-length 262144 --set train.precision=bf16 --json)text";

constexpr const char* kSampleFooter =
    R"text(Generates with the sparse cache from random weights. The bound: all weights of products and the keys
and values of the kept pairs, read once for each byte at the speed of the copy; what caches hold may
pass it.)text";

void add_length(CLI::App* command, const char* name, std::int64_t& length, const char* help) {
  command->add_option(name, length, help)->check(at_least(1))->type_name("N");
}

void add_preset(CLI::App* command, std::string& preset, std::vector<std::string>& settings) {
  command->add_option("--preset", preset, "preset or TOML file (small-text)")->type_name("PRESET");
  command->add_option("--set", settings, "a setting, may be given again")
      ->type_name("KEY=VALUE")
      ->allow_extra_args(false);
}

void add_attention(Program& program, CLI::App& bench) {
  struct Arguments {
    AttentionBenchOptions options;
    std::string precision = "both";
    bool parts = false, growth = false;
  };
  auto a = std::make_shared<Arguments>();
  AttentionBenchOptions& o = a->options;
  CLI::App* command = add_command(program, bench, "attention",
                                  "Parts and patterns, forward and backward", kAttentionFooter);
  command->add_flag("--parts", a->parts, "only the parts and patterns");
  command->add_flag("--growth", a->growth, "only growth");
  command->add_option("--precision", a->precision, "f32, bf16 or both (both; growth: the first)")
      ->check(CLI::IsMember({"f32", "bf16", "both"}).description(""))
      ->type_name("NAME");
  add_length(command, "--batch", o.batch, "sequences (1)");
  add_length(command, "--heads", o.heads, "heads, an even number (8)");
  add_length(command, "--length", o.length, "positions (12288)");
  add_length(command, "--width", o.width, "of a head (64)");
  add_length(command, "--stride", o.stride, "l of the parts (128)");
  add_length(command, "--summary", o.summary, "c of fixed(l, c) (32)");
  add_length(command, "--dense-length", o.dense_length, "positions of dense (4096)");
  add_length(command, "--min-length", o.min_length, "growth: first N (1024)");
  add_length(command, "--max-length", o.max_length, "growth: last N, doubled (65536)");
  set_action(program, command, [a, &globals = program.globals] {
    AttentionBenchOptions options = a->options;
    options.parts = a->parts || !a->growth;
    options.growth = a->growth || !a->parts;
    options.f32 = a->precision != "bf16";
    options.bf16 = a->precision != "f32";
    print_report(bench_attention(options), globals.json);
    return 0;
  });
}

void add_train_bench(Program& program, CLI::App& bench) {
  struct Arguments {
    BenchTrainArguments train;
    BenchGrowthArguments growth;
    bool grow = false;
  };
  auto a = std::make_shared<Arguments>();
  CLI::App* command =
      add_command(program, bench, "train", "Training steps of a preset", kTrainFooter);
  add_preset(command, a->train.preset, a->train.settings);
  add_length(command, "--steps", a->train.steps, "steps timed (10)");
  add_device(command, a->train.device);
  CLI::Option* grow = command->add_flag("--growth", a->grow, "time a token against N");
  grow->excludes("--preset")->excludes("--steps");
  command->add_option("--min-length", a->growth.min_length, "growth: first N (4096)")
      ->check(at_least(1))
      ->type_name("N")
      ->needs(grow);
  command->add_option("--max-length", a->growth.max_length, "growth: last N, doubled (16384)")
      ->check(at_least(1))
      ->type_name("N")
      ->needs(grow);
  set_action(program, command, [a, &globals = program.globals] {
    if (!a->grow) return bench_train(a->train, globals);
    BenchGrowthArguments growth = a->growth;
    growth.settings = a->train.settings;
    growth.device = a->train.device;
    return bench_growth(growth, globals);
  });
}

void add_sample_bench(Program& program, CLI::App& bench) {
  auto a = std::make_shared<BenchSampleArguments>();
  CLI::App* command =
      add_command(program, bench, "sample", "Generated bytes a second", kSampleFooter);
  add_preset(command, a->preset, a->settings);
  add_length(command, "--length", a->length,
             "bytes generated, within the context (all of it, 2000 at most)");
  set_action(program, command,
             [a, &globals = program.globals] { return bench_sample(*a, globals); });
}

}  // namespace

void add_bench(Program& program) {
  CLI::App* bench = program.app.add_subcommand(
      "bench", "Times operations, attention against length, training and sampling");
  bench->footer(kBenchFooter);
  bench->require_subcommand(1);
  add_attention(program, *bench);
  CLI::App* ops = add_command(program, *bench, "ops",
                              "Every operation of a layer besides attention", kOpsFooter);
  set_action(program, ops, [&globals = program.globals] {
    print_report(bench_ops(), globals.json);
    return 0;
  });
  add_train_bench(program, *bench);
  add_sample_bench(program, *bench);
}

}  // namespace longstride::cli
