// What the sub-commands share: the program they belong to and how one is added.
//
// A sub-command is one file with one add_*(Program&): it declares its options on the CLI11 tree and
// stores what to do in Program::action, which main runs after the whole command line was read. The
// tree is also what `completion` walks and what --help prints, so nothing is listed twice.
#pragma once

#include <CLI/CLI.hpp>
#include <cstdint>
#include <functional>
#include <string>

namespace longstride::cli {

struct Globals {
  int threads = 0;  // 0: the environment, else all cores
  bool quiet = false;
  bool json = false;
};

struct Program {
  CLI::App app{"Sparse Transformers over bytes: train, evaluate, sample.", "longstride"};
  Globals globals;
  bool version = false;
  std::function<int()> action;  // returns the exit code; throws Error
};

// A sub-command with --json, --quiet and --threads of its own (the same variables everywhere).
CLI::App* add_command(Program& program, CLI::App& parent, const std::string& name,
                      const std::string& description, const std::string& footer);

// Runs `action` when `command` is the one that was given.
template <class Action>
void set_action(Program& program, CLI::App* command, Action action) {
  command->callback([&program, action = std::move(action)] { program.action = action; });
}

// Refuses what is not a whole number of low or more (and below 2^63), the empty word included.
CLI::Validator at_least(std::int64_t low);

// --device, which is "auto" unless given; and --precision, of evaluation and sampling.
void add_device(CLI::App* command, std::string& device);
void add_precision(CLI::App* command, std::string& precision);

void add_train(Program& program);
void add_eval(Program& program);
void add_sample(Program& program);
void add_inspect(Program& program);
void add_prepare(Program& program);
void add_bench(Program& program);
void add_doctor(Program& program);
void add_completion(Program& program);

}  // namespace longstride::cli
