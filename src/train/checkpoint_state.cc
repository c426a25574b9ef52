#include "train/checkpoint_state.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <string_view>
#include <utility>
#include <vector>

#include "files/checkpoint.h"
#include "files/files.h"
#include "longstride/error.h"
#include "model/model_files.h"

namespace longstride {

namespace fs = std::filesystem;

namespace {

// One flat array of the state and how its tensors are called in a file.
struct Group {
  std::string prefix;
  Vector<float> flat;
};

std::vector<Group> model_groups(const TrainState& s) {
  return {{"", s.average.size() ? s.average.vector() : s.weights.vector()}};
}

std::vector<Group> optimizer_groups(const TrainState& s) {
  std::vector<Group> groups = {{"m/", s.m.vector()}, {"v/", s.v.vector()}};
  if (s.average.size()) groups.push_back({"weights/", s.weights.vector()});
  return groups;
}

std::vector<TensorOut> tensors(const ParameterLayout& layout, const std::vector<Group>& groups) {
  std::vector<TensorOut> out;
  for (const Group& group : groups) {
    if (const auto bad = first_nonfinite(layout, group.flat); !bad.empty())
      throw Error(Fault::numerics,
                  text("train: ", group.prefix, bad, " holds a non-finite number; not saved"));
    for (const Parameter& t : layout.tensors)
      out.push_back({group.prefix + t.name, "F32", t.shape, group.flat.data + t.offset});
  }
  return out;
}

void read(const fs::path& path, const ParameterLayout& layout, const std::vector<Group>& groups) {
  const TensorFile file(path);
  if (file.header().tensors.size() != layout.tensors.size() * groups.size())
    throw invalid_argument("train: ", path.string(), " has ", file.header().tensors.size(),
                           " tensors, want ", layout.tensors.size() * groups.size());
  for (const Group& group : groups)
    for (const Parameter& t : layout.tensors)
      file.read(group.prefix + t.name, t.shape, group.flat.data + t.offset);
}

std::string show(const std::string& value) { return value; }
std::string show(std::int64_t value) { return std::to_string(value); }
std::string show(std::uint64_t value) { return std::to_string(value); }
std::string show(double value) { return fmt::format("{}", value); }  // shortest exact spelling

template <class T>
std::string show(const std::vector<T>& values) {
  std::string out = "[";
  for (const T& value : values) out += (out.size() > 1 ? ", " : "") + show(value);
  return out + "]";
}

std::vector<std::pair<std::string, std::string>> settings(const Config& config) {
  std::vector<std::pair<std::string, std::string>> all;
  visit_fields(config, [&](const char* key, const auto& value, const char*) {
    all.emplace_back(key, show(value));
  });
  return all;
}

// These change nothing that is computed, or only when a step fails.
constexpr std::array kFree = {"name",
                              "description",
                              "train.recompute",
                              "train.validate_every",
                              "train.validate_symbols",
                              "train.checkpoint_every",
                              "train.keep_checkpoints",
                              "train.on_nonfinite"};
// These change the steps to come (schedule, rounding), by wish.
constexpr std::array kWarned = {"train.steps", "train.micro_batch", "train.precision"};

bool holds(const auto& list, std::string_view key) {
  return std::find(list.begin(), list.end(), key) != list.end();
}

}  // namespace

std::int64_t checkpoint_bytes(const Config& config, const ParameterLayout& layout) {
  return layout.count * static_cast<std::int64_t>(sizeof(float)) * (config.train.ema > 0 ? 4 : 3);
}

fs::path save_checkpoint(const fs::path& run, const Config& config, const ParameterLayout& layout,
                         const TrainState& state, const RunState& about) {
  CheckpointContents contents;
  contents.step = about.step;
  contents.model = tensors(layout, model_groups(state));
  contents.optimizer = tensors(layout, optimizer_groups(state));
  contents.state_json = to_json(about);
  contents.metadata = {{kConfigKey, about.config},
                       {"longstride.name", config.name},
                       {kStepKey, std::to_string(about.step)}};
  return write_checkpoint(run, contents);
}

RunState read_run_state(const fs::path& checkpoint) {
  const fs::path file = checkpoint / "state.json";
  return parse_run_state(read_file(file), file.string());
}

std::int64_t recorded_micro_batch(const fs::path& run, const std::string& device) {
  const auto all = list_checkpoints(run);
  if (all.empty()) return 0;
  try {
    const RunState saved = read_run_state(all.back().folder);
    return saved.device == device ? parse_config(saved.config, "").train.micro_batch : 0;
  } catch (const Error&) {
    return 0;  // damaged: to be told by who loads it
  }
}

void load_checkpoint(const fs::path& checkpoint, const ParameterLayout& layout,
                     const RunState& about, TrainState& state) {
  read(checkpoint / "model.safetensors", layout, model_groups(state));
  read(checkpoint / "optimizer.safetensors", layout, optimizer_groups(state));
  state.step = about.step;
  state.skipped = about.skipped;
  state.skipped_in_a_row = about.skipped_in_a_row;
  state.loss_scale = about.loss_scale;
}

std::string check_same_config(const Config& config, const std::string& device,
                              const RunState& about, const fs::path& run) {
  const auto now = settings(config);
  const auto then = settings(parse_config(about.config, (run / "checkpoints").string()));
  std::string refused, warned;
  for (std::size_t i = 0; i < now.size(); ++i) {
    const auto& [key, value] = now[i];
    if (value == then[i].second || holds(kFree, key)) continue;
    std::string& list = holds(kWarned, key) ? warned : refused;
    list += (list.empty() ? "" : ", ") + key + " " + then[i].second + " there, " + value + " here";
  }
  if (!refused.empty())
    throw invalid_argument("train: ", run.string(), " was started with other settings: ", refused,
                           "; want the same, or another run folder");
  if (device != about.device)
    warned +=
        (warned.empty() ? "" : ", ") + text("device ", about.device, " there, ", device, " here");
  if (warned.empty()) return "";
  return text("train: the steps from ", about.step + 1,
              " on differ from those of the first plan: ", warned);
}

}  // namespace longstride
