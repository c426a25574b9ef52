// longstride doctor: the machine and this build.
#include <fmt/format.h>

#include <algorithm>

#include "cli/command.h"
#include "cli/output.h"
#include "longstride/runtime.h"

namespace longstride::cli {

namespace {

int doctor_command(bool json) {
  const std::vector<Fact> facts = doctor();
  nlohmann::ordered_json document = nlohmann::ordered_json::object();
  std::size_t widest = 0;
  for (const Fact& fact : facts) widest = std::max(widest, fact.name.size());
  std::string lines;
  for (const Fact& fact : facts) {
    document[fact.name] = fact.value;
    lines += fmt::format("{:<{}}  {}\n", fact.name, widest, one_line(fact.value));
  }
  json ? print_json(document) : print(lines);
  return 0;
}

}  // namespace

void add_doctor(Program& program) {
  CLI::App* command = add_command(program, program.app, "doctor",
                                  "Processor, memory, GPUs, libraries, what is built in", "");
  set_action(program, command,
             [&globals = program.globals] { return doctor_command(globals.json); });
}

}  // namespace longstride::cli
