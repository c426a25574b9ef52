// longstride bench: how fast this machine runs it, beside what the machine can do.
#include <fmt/format.h>
#include <stdlib.h>  // mkdtemp, of POSIX

#include <filesystem>
#include <random>

#include "cli/command.h"
#include "cli/files.h"
#include "cli/output.h"
#include "cli/progress.h"
#include "longstride/error.h"
#include "longstride/runtime.h"
#include "longstride/sample.h"
#include "longstride/train.h"

namespace longstride::cli {

namespace {

using Json = nlohmann::ordered_json;

// A folder that goes away with its contents.
class TemporaryFolder {
 public:
  TemporaryFolder() {
    std::string name =
        (std::filesystem::temp_directory_path() / "longstride-bench-XXXXXX").string();
    if (mkdtemp(name.data()) == nullptr)
      throw environment_error("bench: cannot make a temporary folder ", name);
    path = name;
  }
  ~TemporaryFolder() {
    std::error_code ignored;
    std::filesystem::remove_all(path, ignored);
  }
  TemporaryFolder(const TemporaryFolder&) = delete;
  std::filesystem::path path;
};

// What bounds the row, and which share of that bound it reaches.
std::pair<double, const char*> share_of_bound(const BenchRow& row, const BenchReport& report) {
  const double compute = row.flops / report.peak_flops, memory = row.bytes / report.peak_bytes;
  return compute > memory ? std::pair(compute / row.seconds, "compute")
                          : std::pair(memory / row.seconds, "memory");
}

void print_report(const BenchReport& report, bool json) {
  Json rows = Json::array(), fits = Json::array();
  std::string lines =
      fmt::format("peak {}flop/s (f32 matrix product), {}B/s (memory), {} threads\n\n",
                  with_unit(report.peak_flops), with_unit(report.peak_bytes), used_threads());
  for (const BenchRow& row : report.rows) {
    const auto [share, bound] = share_of_bound(row, report);
    rows.push_back({{"series", row.series},
                    {"shape", row.shape},
                    {"size", row.size},
                    {"seconds", row.seconds},
                    {"flops", row.flops},
                    {"bytes", row.bytes},
                    {"flops_per_second", row.flops / row.seconds},
                    {"share", share},
                    {"bound", bound}});
    lines +=
        fmt::format("{:<26} {:<28} {:>10.3f} ms {:>8.2f} Gflop/s {:>7.2f} GB/s {:>4.0f} % of {}\n",
                    row.series, row.shape, row.seconds * 1e3, row.flops / row.seconds * 1e-9,
                    row.bytes / row.seconds * 1e-9, 100 * share, bound);
  }
  for (const BenchFit& fit : report.fits) {
    fits.push_back({{"series", fit.series}, {"exponent", fit.exponent}});
    lines += fmt::format("\n{}: time ~ N^{:.3f}", fit.series, fit.exponent);
  }
  if (!json) return print(lines + (report.fits.empty() ? "" : "\n"));
  print_json({{"peak_flops_per_second", report.peak_flops},
              {"peak_bytes_per_second", report.peak_bytes},
              {"threads", used_threads()},
              {"rows", rows},
              {"fits", fits}});
}

// Trains the preset on random bytes in `folder` for a few steps; returns what was seen.
struct TrainTimes {
  MemoryPlan plan;
  double symbols = 0, seconds = 0, flops = 0, peak = 0;  // first steps left out
  std::filesystem::path run;
};

TrainTimes train_some(const std::string& preset, std::int64_t steps, Progress& progress,
                      const std::filesystem::path& folder) {
  constexpr std::int64_t kWarmUp = 2;
  TrainOptions options;
  options.config = load_config(preset, {text("train.steps=", steps + kWarmUp), "train.warmup=0",
                                        "train.validate_every=0", "train.checkpoint_every=0"});
  options.data = folder / "bytes";
  options.run = folder / "run";
  std::mt19937_64 rng(1);
  std::string bytes(static_cast<std::size_t>(options.config.model.context) * 100, '\0');
  for (char& byte : bytes) byte = static_cast<char>(rng());
  write_file(options.data.string(), bytes);

  TrainTimes times;
  times.run = options.run;
  TrainObserver observer;
  observer.on_plan = [&](const MemoryPlan& plan) { times.plan = plan; };
  observer.on_step = [&](const StepReport& step) {
    progress.state(fmt::format("step {}/{}", step.step, step.steps));
    if (step.step <= kWarmUp) return;
    times.seconds += step.seconds;
    times.symbols += step.seconds * step.symbols_per_second;
    times.flops += step.seconds * step.flops_per_second;
    times.peak = step.peak_flops_per_second;
  };
  train(options, observer);
  return times;
}

struct BenchArguments {
  std::string preset = "small-text";
  std::int64_t steps = 10, length = 2000, min_length = 1024, max_length = 65536;
};

int train_command(const BenchArguments& a, const Globals& globals) {
  const TemporaryFolder folder;
  TrainTimes t;
  {
    Progress progress(globals.quiet);
    t = train_some(a.preset, a.steps, progress, folder.path);
  }
  const double share = t.peak > 0 ? t.flops / t.seconds / t.peak : 0;
  if (globals.json)
    print_json({{"preset", a.preset},
                {"parameters", t.plan.parameters},
                {"memory", t.plan.total()},
                {"steps", a.steps},
                {"symbols_per_second", t.symbols / t.seconds},
                {"flops_per_second", t.flops / t.seconds},
                {"peak_flops_per_second", t.peak},
                {"share", share},
                {"threads", used_threads()}});
  else
    print(fmt::format("{}: {} tokens/s, {}flop/s ({:.0f} % of {}flop/s), {} threads\n", a.preset,
                      with_unit(t.symbols / t.seconds), with_unit(t.flops / t.seconds), 100 * share,
                      with_unit(t.peak), used_threads()));
  return 0;
}

int sample_command(const BenchArguments& a, const Globals& globals) {
  const TemporaryFolder folder;
  SampleOptions options;
  {
    Progress progress(globals.quiet);
    options.run_or_checkpoint = train_some(a.preset, 1, progress, folder.path).run;
  }
  options.length = a.length;
  const SampleResult result = sample(options);
  const double rate = static_cast<double>(result.symbols) / result.seconds;
  if (globals.json)
    print_json({{"preset", a.preset},
                {"symbols", result.symbols},
                {"seconds", result.seconds},
                {"symbols_per_second", rate},
                {"cache_bytes", result.cache_bytes},
                {"threads", used_threads()}});
  else
    print(fmt::format("{}: {} bytes/s, cache {}, {} threads\n", a.preset, with_unit(rate),
                      as_bytes(result.cache_bytes), used_threads()));
  return 0;
}

}  // namespace

void add_bench(Program& program) {
  CLI::App* bench = program.app.add_subcommand(
      "bench", "Times operations, attention against length, training and sampling");
  bench->require_subcommand(1);
  auto a = std::make_shared<BenchArguments>();
  const Globals& globals = program.globals;

  CLI::App* attention =
      add_command(program, *bench, "attention",
                  "strided(sqrt N) and dense against N, forward and backward", "");
  attention->add_option("--min-length", a->min_length, "first N (1024)")
      ->check(at_least(1))
      ->type_name("N");
  attention->add_option("--max-length", a->max_length, "last N, doubled from the first (65536)")
      ->check(at_least(1))
      ->type_name("N");
  set_action(program, attention, [a, &globals] {
    print_report(bench_attention(a->min_length, a->max_length), globals.json);
    return 0;
  });

  CLI::App* ops = add_command(program, *bench, "ops", "Every operation of a layer", "");
  set_action(program, ops, [&globals] {
    print_report(bench_ops(), globals.json);
    return 0;
  });

  CLI::App* train = add_command(program, *bench, "train", "Tokens a second of a preset", "");
  train->add_option("--preset", a->preset, "preset or TOML file (small-text)")->type_name("PRESET");
  train->add_option("--steps", a->steps, "steps timed (10)")->check(at_least(1))->type_name("N");
  set_action(program, train, [a, &globals] { return train_command(*a, globals); });

  CLI::App* sample = add_command(program, *bench, "sample", "Generated bytes a second", "");
  sample->add_option("--preset", a->preset, "preset or TOML file (small-text)")
      ->type_name("PRESET");
  sample->add_option("--length", a->length, "bytes generated (2000)")
      ->check(at_least(1))
      ->type_name("N");
  set_action(program, sample, [a, &globals] { return sample_command(*a, globals); });
}

}  // namespace longstride::cli
