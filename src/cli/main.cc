// The command line: reads it, runs one sub-command, turns every failure into one line and a code.
#include <charconv>
#include <csignal>
#include <cstdio>
#include <filesystem>
#include <new>

#include "cli/command.h"
#include "cli/output.h"
#include "longstride/error.h"
#include "longstride/runtime.h"

namespace longstride::cli {

namespace {

constexpr int kUsage = 2;
constexpr int kMaxThreads = 1024;

constexpr const char* kMainFooter =
    R"text(A first session:
  longstride train tiny-text --data book.txt --run runs/first
  longstride eval runs/first --data book.txt
  longstride sample runs/first --prompt "Once " --length 200

Results go to stdout, log and progress to stderr. `longstride COMMAND --help` says more.

Exit codes:
  0  done             3  disk, memory or permission    75  stopped on request, state saved:
  1  fault of ours    4  training stopped by numbers       the same command resumes
  2  usage or input   5  device or driver

Environment: LONGSTRIDE_NUM_THREADS, OMP_NUM_THREADS, NO_COLOR; LONGSTRIDE_CUDA_SYNC=1 makes a fault
on the GPU name its kernel, LONGSTRIDE_CUDA_PORTABLE=1 leaves out kernels for Hopper alone.)text";

void add_globals(Program& program, CLI::App& app) {
  app.add_option("--threads", program.globals.threads,
                 "threads; 0: LONGSTRIDE_NUM_THREADS, OMP_NUM_THREADS, else all cores")
      ->check(at_least(0))
      ->check(CLI::Range(0, kMaxThreads).description(""))
      ->type_name("N");
  app.add_flag("--quiet,-q", program.globals.quiet, "no progress on stderr");
  app.add_flag("--json", program.globals.json, "the result as JSON on stdout");
}

void print_version(bool json) {
  if (json)
    print_json({{"name", "longstride"}, {"version", kVersion}});
  else
    print(std::string("longstride ") + kVersion + "\n");
}

int fail(int code, const std::string& message) {
  std::fputs(("longstride: " + one_line(message) + "\n").c_str(), stderr);
  return code;
}

int run(Program& program, int argc, char** argv) {
  try {
    program.app.parse(argc, argv);
  } catch (const CLI::Success& help) {
    program.app.exit(help);
    return 0;
  } catch (const CLI::ExtrasError& e) {
    const auto extras = program.app.remaining();
    const bool command = program.app.get_subcommands().empty() && !extras.empty() &&
                         !extras.front().starts_with('-');
    if (!command) return fail(kUsage, std::string("usage: ") + e.what());
    return fail(kUsage, "usage: '" + extras.front() + "' is not a command, see longstride --help");
  } catch (const CLI::RequiredError& e) {
    for (const CLI::App* command : program.app.get_subcommands())
      for (const std::string& word : command->remaining())
        if (command->get_subcommands().empty() && !word.starts_with('-'))
          return fail(kUsage, "usage: '" + word + "' is not a command, see longstride " +
                                  command->get_name() + " --help");
    return fail(kUsage, std::string("usage: ") + e.what());
  } catch (const CLI::ParseError& e) {
    return fail(kUsage, std::string("usage: ") + e.what());
  }
  if (program.version) {
    print_version(program.globals.json);
    return 0;
  }
  if (!program.action) return fail(kUsage, "usage: no command given, see longstride --help");
  use_threads(program.globals.threads);
  return program.action();
}

int guarded(Program& program, int argc, char** argv) {
  try {
    return run(program, argc, argv);
  } catch (const ClosedPipe&) {
    return 0;  // the reader has seen enough
  } catch (const Error& e) {
    return fail(exit_code(e.fault), e.what());
  } catch (const std::bad_alloc&) {
    return fail(exit_code(Fault::environment), "memory: out of memory");
  } catch (const std::filesystem::filesystem_error& e) {
    return fail(exit_code(Fault::environment), e.what());
  } catch (const std::exception& e) {
    return fail(exit_code(Fault::internal), std::string("internal: ") + e.what());
  }
}

}  // namespace

CLI::Validator at_least(std::int64_t low) {
  return CLI::Validator(
      [low](std::string& word) {
        std::int64_t value = 0;
        const auto [end, error] = std::from_chars(word.data(), word.data() + word.size(), value);
        const bool whole = error == std::errc() && end == word.data() + word.size();
        if (whole && value >= low) return std::string();
        return text("'", word, "' is not a whole number of ", low, " or more");
      },
      "");
}

void add_device(CLI::App* command, std::string& device) {
  device = "auto";
  command->add_option("--device", device, "auto: the GPU where there is one that will do (auto)")
      ->check(CLI::IsMember({"auto", "cpu", "cuda"}))
      ->type_name("auto|cpu|cuda");
}

void add_precision(CLI::App* command, std::string& precision) {
  command
      ->add_option("--precision", precision,
                   "on the GPU, of what products and attention read (f32)")
      ->check(CLI::IsMember({"f32", "bf16"}))
      ->type_name("f32|bf16");
}

CLI::App* add_command(Program& program, CLI::App& parent, const std::string& name,
                      const std::string& description, const std::string& footer) {
  CLI::App* command = parent.add_subcommand(name, description);
  command->footer(footer);
  command->fallthrough(false);
  add_globals(program, *command);
  return command;
}

}  // namespace longstride::cli

int main(int argc, char** argv) {
  using namespace longstride::cli;
  // A closed pipe shows as a failed write, where it can be told from a full disk.
  std::signal(SIGPIPE, SIG_IGN);
  Program program;
  program.app.require_subcommand(0, 1);
  program.app.footer(kMainFooter);
  add_globals(program, program.app);
  program.app.add_flag("--version", program.version,
                       "version of the program (with --json: as JSON)");
  add_train(program);
  add_eval(program);
  add_sample(program);
  add_inspect(program);
  add_prepare(program);
  add_bench(program);
  add_doctor(program);
  add_completion(program);
  return guarded(program, argc, argv);
}
