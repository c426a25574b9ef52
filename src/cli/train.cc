// longstride train: a run from a preset or file, its overrides and a byte sequence.
#include "longstride/train.h"

#include <fmt/format.h>

#include "cli/command.h"
#include "cli/output.h"
#include "cli/progress.h"
#include "cli/signals.h"
#include "longstride/error.h"

namespace longstride::cli {

namespace {

using Json = nlohmann::ordered_json;

constexpr const char* kTrainFooter =
    R"text(Settings are keys of the TOML file, the later winning; an unknown key names the nearest known one.
As many sequences run at once as fit and make steps quicker (train.micro_batch=N names the number), and
blocks run again in backward where memory wants it (train.recompute=on|off). The plan says what was taken.
A run folder that holds checkpoints is resumed, to the same bits as a run that never stopped.
Checkpoints are the same on CPU and GPU: a run may change device, which it then says.
SIGINT and SIGTERM save and end with code 75; the same command then resumes. With --json one JSON
line an event: plan, resume, step, validation, checkpoint, warning, end.

Examples:
  longstride train tiny-text --data book.txt --run runs/first
  longstride train small-text model.layers=6 train.lr=1e-3 --data book.txt --run runs/six
  longstride train my.toml model.attention='["local(32)", "column(32)"]' --data d.bin --run runs/b
  longstride train enwik8-95m --data enwik8 --run runs/e --dry-run
  longstride train enwik8-95m --device cuda train.recompute=on --data enwik8 --run runs/e)text";

struct TrainArguments {
  std::string config;
  std::vector<std::string> settings;
  std::string data, run, resume = "auto", device;
  std::optional<std::int64_t> steps, stop_at;
  bool dry_run = false;
};

Json to_json(const MemoryPlan& p) {
  return {{"event", "plan"},
          {"device", p.device},
          {"precision", p.precision},
          {"micro_batch", p.micro_batch},
          {"parameters", p.parameters},
          {"weights", p.weights},
          {"gradients", p.gradients},
          {"optimizer", p.optimizer},
          {"averages", p.averages},
          {"kept", p.kept},
          {"scratch", p.scratch},
          {"total", p.total()},
          {"recompute", recompute_json(p.recompute)},
          {"available", p.available}};
}

Json to_json(const StepReport& s) {
  return {{"event", "step"},
          {"step", s.step},
          {"steps", s.steps},
          {"symbols", s.symbols},
          {"bits", s.bits},
          {"lr", s.lr},
          {"grad_norm", s.grad_norm},
          {"seconds", s.seconds},
          {"symbols_per_second", s.symbols_per_second},
          {"flops_per_second", s.flops_per_second},
          {"peak_flops_per_second", s.peak_flops_per_second},
          {"memory", s.memory},
          {"eta_seconds", s.eta_seconds},
          {"skipped", s.skipped}};
}

std::string describe(const MemoryPlan& p) {
  return fmt::format(
      "{}, {}; {} parameters; memory {}: weights {}, gradients {}, optimizer {}, averages {}, "
      "kept {}, scratch {}; micro-batch {}; recompute {}; {} free",
      p.device, p.precision, with_commas(p.parameters), as_bytes(p.total()), as_bytes(p.weights),
      as_bytes(p.gradients), as_bytes(p.optimizer), as_bytes(p.averages), as_bytes(p.kept),
      as_bytes(p.scratch), p.micro_batch, recompute_text(p.recompute), as_bytes(p.available));
}

std::string describe(const StepReport& s) {
  const std::string share =
      s.peak_flops_per_second > 0
          ? fmt::format("{:.0f} % of peak", 100 * s.flops_per_second / s.peak_flops_per_second)
          : "peak unknown";
  return fmt::format(
      "step {}/{}  {:.3f} bits/byte  lr {:.2e}  grad {:.3g}  {} tokens/s  {}  {}  "
      "eta {}{}",
      s.step, s.steps, s.bits, s.lr, s.grad_norm, with_unit(s.symbols_per_second), share,
      as_bytes(s.memory), as_duration(s.eta_seconds),
      s.skipped ? "  (skipped: gradient not finite)" : "");
}

// Shows the events of one training as text on stderr, or as JSON lines on stdout, or both.
class Watcher {
 public:
  explicit Watcher(const Globals& globals) : progress_(globals.quiet), json_(globals.json) {}

  TrainObserver observer() {
    TrainObserver o;
    o.on_plan = [this](const MemoryPlan& plan) {
      emit(to_json(plan));
      progress_.note("plan: " + describe(plan));
    };
    o.on_resume = [this](std::int64_t step, const std::filesystem::path& folder) {
      emit({{"event", "resume"}, {"step", step}, {"checkpoint", folder.string()}});
      progress_.note(fmt::format("resuming after step {} from {}", step, folder.string()));
    };
    o.on_step = [this](const StepReport& step) {
      emit(to_json(step));
      progress_.state(describe(step), step.step == step.steps);
    };
    o.on_validation = [this](const ValidationReport& v) { validation(v); };
    o.on_checkpoint = [this](std::int64_t step, const std::filesystem::path& folder) {
      emit({{"event", "checkpoint"}, {"step", step}, {"checkpoint", folder.string()}});
    };
    o.on_warning = [this](const std::string& line) { warning(line); };
    o.stop_requested = stop_requested;
    return o;
  }

  void emit(const Json& event) {
    if (!json_) return;
    try {
      print_json(event);
    } catch (const ClosedPipe&) {  // nobody listens any more; the run is what matters
      json_ = false;
    }
  }

 private:
  void validation(const ValidationReport& v) {
    emit({{"event", "validation"},
          {"step", v.step},
          {"symbols", v.symbols},
          {"bits", v.bits},
          {"best_bits", v.best_bits},
          {"best", v.best}});
    progress_.note(
        fmt::format("step {}  validation {} bits/byte over {} bytes{}", v.step,
                    progress_.bold(fmt::format("{:.4f}", v.bits)), with_commas(v.symbols),
                    v.best ? ", the best so far" : fmt::format(", best {:.4f}", v.best_bits)));
  }

  void warning(const std::string& line) {
    emit({{"event", "warning"}, {"message", line}});
    progress_.warn(line);
  }

  Progress progress_;
  bool json_;
};

TrainOptions options_of(const TrainArguments& a) {
  std::vector<std::string> settings = a.settings;
  if (a.steps) settings.push_back(text("train.steps=", *a.steps));
  TrainOptions options;
  options.config = load_config(a.config, settings);
  options.data = a.data;
  options.run = a.run;
  options.resume = a.resume == "never" ? Resume::never : Resume::automatic;
  options.stop_at = a.stop_at;
  options.dry_run = a.dry_run;
  options.device = a.device;
  return options;
}

int finish(const TrainArguments& a, const TrainResult& result, bool json) {
  if (result.stopped) {
    std::fputs(
        fmt::format("longstride: stopped at step {}, saved; same command resumes\n", result.step)
            .c_str(),
        stderr);
    return kExitStopped;
  }
  if (json) return 0;
  std::string best;
  if (result.best_validation_bits > 0)
    best = fmt::format("best validation  {:.4f} bits/byte\n", result.best_validation_bits);
  print(
      fmt::format("run              {}\nstep             {}\nlast loss        {:.4f} bits/byte\n"
                  "{}checkpoint       {}\n",
                  a.run, result.step, result.bits, best, result.checkpoint.string()));
  return 0;
}

int train_command(const TrainArguments& a, const Globals& globals) {
  catch_stop_signals();
  const TrainOptions options = options_of(a);
  TrainResult result;
  {
    Watcher watcher(globals);
    result = train(options, watcher.observer());
    if (a.dry_run) return 0;
    watcher.emit({{"event", "end"},
                  {"step", result.step},
                  {"stopped", result.stopped},
                  {"bits", result.bits},
                  {"best_validation_bits", result.best_validation_bits},
                  {"checkpoint", result.checkpoint.string()}});
  }
  return finish(a, result, globals.json);
}

}  // namespace

void add_train(Program& program) {
  CLI::App* command =
      add_command(program, program.app, "train",
                  "Train a model on a byte sequence, or resume a run", kTrainFooter);
  auto a = std::make_shared<TrainArguments>();
  command->add_option("PRESET|FILE", a->config, "preset by name, or a TOML file")->required();
  command->add_option("SETTINGS", a->settings, "key=value, as in the file")->type_name("");
  command->add_option("--data", a->data, "file of bytes, raw or from `prepare`")
      ->required()
      ->type_name("PATH");
  command->add_option("--run", a->run, "folder of the run, made or resumed")
      ->required()
      ->type_name("DIR");
  command->add_option("--steps", a->steps, "train.steps, overrides the settings")
      ->check(at_least(1))
      ->type_name("N");
  command->add_option("--resume", a->resume, "auto, or never: refuse a folder with checkpoints")
      ->check(CLI::IsMember({"auto", "never"}))
      ->type_name("auto|never");
  command->add_option("--stop-at", a->stop_at, "save and stop (code 75) after this step")
      ->check(at_least(1))
      ->type_name("N");
  add_device(command, a->device);
  command->add_flag("--dry-run", a->dry_run, "print the plan of memory and stop");
  set_action(program, command,
             [a, &globals = program.globals] { return train_command(*a, globals); });
}

}  // namespace longstride::cli
