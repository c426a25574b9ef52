// longstride sample: continuations of a prompt, as they come.
#include "longstride/sample.h"

#include <fmt/format.h>

#include <cstdio>

#include "cli/command.h"
#include "cli/files.h"
#include "cli/output.h"
#include "cli/progress.h"
#include "longstride/error.h"

namespace longstride::cli {

namespace {

constexpr const char* kSampleFooter =
    R"text(Without --out the bytes generated go to stdout as they come, without the prompt, sample after sample
(each has exactly --length bytes). With --out FILE the prompt and its continuation are written there
as raw bytes; with --count above 1 to FILE.0, FILE.1, ... The same weights, prompt, seed and cuts
give the same bytes on the same kind of device, whatever --count; on the CPU with --no-cache too.

Examples:
  longstride sample runs/first --prompt "Once upon" --length 500
  longstride sample runs/first --prompt-file start.txt --temperature 0.8 --top-p 0.95 --seed 7
  longstride sample runs/first --length 65536 --count 4 --out sample.bin)text";

struct SampleArguments {
  SampleOptions options;
  std::string prompt_file, out;
  bool no_cache = false;
};

std::string hex(const std::string& bytes) {
  std::string digits;
  for (const char c : bytes) digits += fmt::format("{:02x}", static_cast<unsigned char>(c));
  return digits;
}

nlohmann::ordered_json to_json(const SampleResult& result, const SampleOptions& options) {
  nlohmann::ordered_json samples = nlohmann::ordered_json::array();
  for (const std::string& s : result.samples) samples.push_back({{"text", s}, {"hex", hex(s)}});
  return {{"samples", samples},
          {"prompt_bytes", options.prompt.size()},
          {"seed", options.seed},
          {"symbols", result.symbols},
          {"seconds", result.seconds},
          {"symbols_per_second",
           result.seconds > 0 ? static_cast<double>(result.symbols) / result.seconds : 0.0},
          {"cache_bytes", result.cache_bytes},
          {"device", result.device},
          {"precision", options.precision}};
}

void write_samples(const std::string& out, const std::string& prompt, const SampleResult& result) {
  for (std::size_t s = 0; s < result.samples.size(); ++s) {
    const std::string file = result.samples.size() == 1 ? out : text(out, ".", s);
    write_file(file, prompt + result.samples[s]);
  }
}

int sample_command(SampleArguments a, const Globals& globals) {
  SampleOptions& options = a.options;
  options.cache = !a.no_cache;
  if (!a.prompt_file.empty()) options.prompt = read_whole_file(a.prompt_file);
  if (!a.out.empty()) check_writable(a.out);
  const bool streams = !globals.json && a.out.empty();

  Progress progress(globals.quiet);
  std::int64_t done = 0;
  options.on_symbol = [&](std::int64_t sample, std::uint8_t symbol) {
    ++done;
    if (!streams)
      progress.state(
          fmt::format("sample {} of {}: {} of {} bytes", sample + 1, options.count,
                      with_commas(done - sample * options.length), with_commas(options.length)),
          done == options.count * options.length);
    else
      print(std::string_view(reinterpret_cast<const char*>(&symbol), 1));
    return true;
  };
  options.on_warning = [&](const std::string& line) { progress.warn(line); };
  const SampleResult result = sample(options);
  if (!a.out.empty()) write_samples(a.out, options.prompt, result);
  if (globals.json) print_json(to_json(result, options));
  if (!streams)
    progress.note(fmt::format("{} bytes in {:.2f} s, {} bytes/s, cache {}, {}, {}",
                              with_commas(result.symbols), result.seconds,
                              with_unit(static_cast<double>(result.symbols) / result.seconds),
                              as_bytes(result.cache_bytes), result.device, options.precision));
  return 0;
}

}  // namespace

void add_sample(Program& program) {
  CLI::App* command = add_command(program, program.app, "sample",
                                  "Generate bytes with a trained model", kSampleFooter);
  auto a = std::make_shared<SampleArguments>();
  SampleOptions& o = a->options;
  command->add_option("RUN|CHECKPOINT", o.run_or_checkpoint, "run folder or checkpoint folder")
      ->required()
      ->type_name("");
  auto* prompt =
      command->add_option("--prompt", o.prompt, "bytes to go on from")->type_name("TEXT");
  command->add_option("--prompt-file", a->prompt_file, "file of bytes to go on from")
      ->type_name("FILE")
      ->excludes(prompt);
  command->add_option("--length", o.length, "bytes to generate (256)")
      ->check(at_least(0))
      ->type_name("L");
  command->add_option("--count", o.count, "samples (1)")->check(at_least(1))->type_name("K");
  command->add_option("--seed", o.seed, "seed (1)")->check(at_least(0))->type_name("S");
  command->add_option("--temperature", o.temperature, "1: as trained; 0: the most probable byte")
      ->type_name("T");
  command->add_option("--top-k", o.top_k, "only the k most probable; 0: off")
      ->check(at_least(0))
      ->type_name("K");
  command->add_option("--top-p", o.top_p, "only the most probable of this mass; 1: off")
      ->type_name("P");
  command->add_option("--min-p", o.min_p, "only those of this share of the largest; 0: off")
      ->type_name("P");
  command->add_option("--out", a->out, "write prompt and continuation to this file")
      ->type_name("FILE");
  command->add_flag("--no-cache", a->no_cache, "the full pass for every byte: slow");
  add_device(command, o.device);
  add_precision(command, o.precision);
  set_action(program, command,
             [a, &globals = program.globals] { return sample_command(*a, globals); });
}

}  // namespace longstride::cli
