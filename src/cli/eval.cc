// longstride eval: bits per byte of a split, every byte scored once.
#include "longstride/eval.h"

#include <fmt/format.h>

#include "cli/command.h"
#include "cli/output.h"
#include "cli/progress.h"

namespace longstride::cli {

namespace {

constexpr const char* kEvalFooter =
    R"text(Of a run the best checkpoint is taken, else the newest. Windows start every (context - M) bytes; each
but the first scores what lies behind its first M bytes, so a larger M costs more and gives less.
Bits are of float32 arithmetic whatever trained the model; --precision bf16 shows what bf16 loses.
--per-symbol writes one float64 (little endian) a byte, in order; their mean is the figure shown.

Examples:
  longstride eval runs/first --data book.txt
  longstride eval runs/first --data book.txt --split valid --min-context 128 --json
  longstride eval runs/first/checkpoints/step-00000300 --data book.txt --per-symbol bits.f64)text";

void report(const EvalResult& r, const EvalOptions& options, bool json) {
  if (json) {
    print_json({{"bits_per_symbol", r.bits_per_symbol},
                {"symbols", r.symbols},
                {"split", options.split},
                {"min_context", options.min_context},
                {"windows", r.windows},
                {"seconds", r.seconds},
                {"checkpoint", r.checkpoint.string()},
                {"step", r.step},
                {"device", r.device},
                {"precision", options.precision}});
    return;
  }
  print(fmt::format(
      "bits per symbol  {:.6f}\nsymbols          {}\nwindows          {}\n"
      "checkpoint       {} (step {})\ndevice           {}, {}\ntime             {:.1f} s\n",
      r.bits_per_symbol, with_commas(r.symbols), with_commas(r.windows), r.checkpoint.string(),
      r.step, r.device, options.precision, r.seconds));
}

int eval_command(EvalOptions options, const Globals& globals) {
  EvalResult result;
  {
    Progress progress(globals.quiet);
    options.on_progress = [&](std::int64_t done, std::int64_t of) {
      if (done > 0)
        progress.state(fmt::format("scored {} of {} bytes", with_commas(done), with_commas(of)),
                       done == of);
    };
    options.on_warning = [&](const std::string& line) { progress.warn(line); };
    result = evaluate(options);
  }
  report(result, options, globals.json);
  return 0;
}

}  // namespace

void add_eval(Program& program) {
  CLI::App* command = add_command(program, program.app, "eval",
                                  "Bits per byte of a run on a split of the data", kEvalFooter);
  auto o = std::make_shared<EvalOptions>();
  command->add_option("RUN|CHECKPOINT", o->run_or_checkpoint, "run folder or checkpoint folder")
      ->required()
      ->type_name("");
  command->add_option("--data", o->data, "file of bytes, raw or from `prepare`")
      ->required()
      ->type_name("PATH");
  command->add_option("--split", o->split, "which part of the data (test)")
      ->check(CLI::IsMember({"train", "valid", "test", "all"}))
      ->type_name("train|valid|test|all");
  command
      ->add_option("--min-context", o->min_context, "bytes before each scored byte, at least (0)")
      ->check(at_least(0))
      ->type_name("M");
  command->add_option("--max-symbols", o->max_symbols, "score only the first ones; 0: all")
      ->check(at_least(0))
      ->type_name("K");
  command->add_option("--per-symbol", o->per_symbol, "file for the bits of each byte")
      ->type_name("FILE");
  add_device(command, o->device);
  add_precision(command, o->precision);
  set_action(program, command,
             [o, &globals = program.globals] { return eval_command(*o, globals); });
}

}  // namespace longstride::cli
