// longstride prepare: files or folders into one byte file with its splits.
#include "longstride/prepare.h"

#include <fmt/format.h>

#include "cli/command.h"
#include "cli/output.h"
#include "cli/progress.h"

namespace longstride::cli {

namespace {

constexpr const char* kPrepareFooter =
    R"text(Folders are walked in order of name. The output gets a sidecar FILE.json with splits and hash; when it
is there already, made from the same sources, nothing is done.

Examples:
  longstride prepare book.txt -o book.bin
  longstride prepare texts/ more.txt -o all.bin --json)text";

int prepare_command(PrepareOptions options, const Globals& globals) {
  PrepareResult r;
  {
    Progress progress(globals.quiet);
    options.on_progress = [&](std::int64_t done, std::int64_t of) {
      if (done > 0)
        progress.state(fmt::format("read {} of {}", as_bytes(done), as_bytes(of)), done == of);
    };
    r = prepare(options);
  }
  if (globals.json) {
    print_json({{"out", options.out.string()},
                {"bytes", r.bytes},
                {"files", r.files},
                {"train", r.train},
                {"valid", r.valid},
                {"test", r.test},
                {"hash", r.hash},
                {"unchanged", r.unchanged}});
    return 0;
  }
  print(fmt::format("{}{}\n{} bytes of {} files; train {}, valid {}, test {}\nhash {}\n",
                    options.out.string(), r.unchanged ? " (unchanged)" : "", with_commas(r.bytes),
                    with_commas(r.files), with_commas(r.train), with_commas(r.valid),
                    with_commas(r.test), r.hash));
  return 0;
}

}  // namespace

void add_prepare(Program& program) {
  CLI::App* command =
      add_command(program, program.app, "prepare",
                  "Files or folders into one file of bytes with splits", kPrepareFooter);
  auto o = std::make_shared<PrepareOptions>();
  command->add_option("SOURCES", o->sources, "files, or folders")->required()->type_name("");
  command->add_option("-o,--out", o->out, "file to make")->required()->type_name("FILE");
  command->add_flag("--force", o->force, "overwrite an output made from other sources");
  set_action(program, command,
             [o, &globals = program.globals] { return prepare_command(*o, globals); });
}

}  // namespace longstride::cli
