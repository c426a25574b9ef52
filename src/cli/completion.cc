// longstride completion: a script for the shell, from the tree of options itself.
#include <fmt/format.h>

#include <algorithm>

#include "cli/command.h"
#include "cli/output.h"
#include "longstride/config.h"

namespace longstride::cli {

namespace {

constexpr const char* kCompletionFooter = R"text(Examples:
  longstride completion bash > ~/.local/share/bash-completion/completions/longstride
  longstride completion zsh > "${fpath[1]}/_longstride"
  longstride completion fish > ~/.config/fish/completions/longstride.fish)text";

// One node of the tree of sub-commands: "longstride inspect pattern".
struct Node {
  std::string path;
  std::string description;
  std::vector<std::string> commands, options;
  std::vector<std::string> words;  // values that a positional may take
};

std::vector<std::string> preset_names() {
  std::vector<std::string> names;
  for (const Preset& preset : presets()) names.push_back(preset.name);
  return names;
}

void walk(CLI::App& app, const std::string& path, std::vector<Node>& nodes) {
  Node node{path, app.get_description(), {}, {}, {}};
  for (const CLI::Option* option : app.get_options()) {
    for (const std::string& name : option->get_lnames()) node.options.push_back("--" + name);
    for (const std::string& name : option->get_snames()) node.options.push_back("-" + name);
    const std::string positional = option->get_name(true, false);
    if (positional.starts_with("PRESET")) node.words = preset_names();
    if (positional.starts_with("SHELL")) node.words = {"bash", "zsh", "fish"};
  }
  const std::vector<CLI::App*> commands = app.get_subcommands({});
  for (const CLI::App* command : commands) node.commands.push_back(command->get_name());
  nodes.push_back(std::move(node));
  for (CLI::App* command : commands) walk(*command, path + " " + command->get_name(), nodes);
}

// The words behind the program's name that lead to a known node choose the list; the rest are
// files.
std::string bash_script(const std::vector<Node>& nodes) {
  std::string cases, paths;
  for (const Node& node : nodes) {
    paths += fmt::format("{}'{}'", paths.empty() ? "" : " | ", node.path);
    std::vector<std::string> plain = node.commands;
    plain.insert(plain.end(), node.words.begin(), node.words.end());
    cases += fmt::format("    '{}') plain='{}' options='{}' ;;\n", node.path, fmt::join(plain, " "),
                         fmt::join(node.options, " "));
  }
  return fmt::format(R"text(_longstride() {{
  local current=${{COMP_WORDS[COMP_CWORD]}} path=longstride plain options i
  for ((i = 1; i < COMP_CWORD; ++i)); do
    case "$path ${{COMP_WORDS[i]}}" in
      {}) path="$path ${{COMP_WORDS[i]}}" ;;
    esac
  done
  case "$path" in
{}  esac
  if [[ $current == -* ]]; then
    COMPREPLY=($(compgen -W "$options" -- "$current"))
  else
    COMPREPLY=($(compgen -W "$plain" -- "$current") $(compgen -f -- "$current"))
  fi
}}
complete -o filenames -F _longstride longstride
)text",
                     paths, cases);
}

std::string zsh_script(const std::vector<Node>& nodes) {
  return "#compdef longstride\nautoload -U +X bashcompinit && bashcompinit\n" + bash_script(nodes);
}

// fish asks `longstride_at PATH`: do the words before the cursor lead to this node?
std::string fish_script(const std::vector<Node>& nodes) {
  std::string out =
      "function __longstride_at\n  set -l words (commandline -opc)\n"
      "  string match -q -- \"$argv[1]*\" (string join ' ' -- $words)' '\nend\n";
  for (const Node& node : nodes) {
    const std::string at = fmt::format("-n '__longstride_at \"{} \"'", node.path);
    for (const std::vector<std::string>& list : {node.commands, node.words})
      for (const std::string& word : list)
        out += fmt::format("complete -c longstride {} -a '{}'\n", at, word);
    for (const std::string& option : node.options) {
      const bool is_long = option.starts_with("--");
      out += fmt::format("complete -c longstride {} -{} '{}'\n", at, is_long ? 'l' : 's',
                         option.substr(is_long ? 2 : 1));
    }
  }
  return out;
}

}  // namespace

void add_completion(Program& program) {
  CLI::App* command = add_command(program, program.app, "completion",
                                  "Completion script for bash, zsh or fish", kCompletionFooter);
  auto shell = std::make_shared<std::string>();
  command->add_option("SHELL", *shell, "bash, zsh or fish")
      ->required()
      ->check(CLI::IsMember({"bash", "zsh", "fish"}))
      ->type_name("");
  set_action(program, command, [shell, &program] {
    std::vector<Node> nodes;
    walk(program.app, "longstride", nodes);
    print(*shell == "bash"  ? bash_script(nodes)
          : *shell == "zsh" ? zsh_script(nodes)
                            : fish_script(nodes));
    return 0;
  });
}

}  // namespace longstride::cli
