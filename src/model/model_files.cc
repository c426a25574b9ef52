#include "model/model_files.h"

#include <charconv>

#include "files/checkpoint.h"
#include "files/files.h"
#include "longstride/error.h"
#include "model/run_state.h"

namespace longstride {

namespace fs = std::filesystem;

namespace {

constexpr const char* kWeightsFile = "model.safetensors";

// The checkpoint that the newest good one calls the best, or itself.
fs::path best_of_run(const fs::path& run, const Warn& warn) {
  const auto newest = newest_checkpoint(run, warn);
  if (!newest) throw invalid_argument("model: ", run.string(), " holds no good checkpoint");
  const fs::path file = newest->folder / "state.json";
  const RunState state = parse_run_state(read_file(file), file.string());
  if (!state.best || state.best->step == newest->step) return newest->folder;
  for (const auto& one : list_checkpoints(run)) {
    if (one.step != state.best->step) continue;
    const auto fault = verify_checkpoint(one.folder);
    if (!fault) return one.folder;
    warn(text(*fault, "; using ", newest->folder.string()));
    return newest->folder;
  }
  warn(text("model: the best checkpoint, of step ", state.best->step, ", is gone from ",
            run.string(), "; using ", newest->folder.string()));
  return newest->folder;
}

// The folder of a checkpoint, or a safetensors file.
fs::path resolve(const fs::path& path, const Warn& warn) {
  std::error_code fault;
  const fs::path full = fs::canonical(path, fault);
  if (fault) throw invalid_argument("model: ", path.string(), ": ", fault.message());
  if (!fs::is_directory(full)) return full;
  if (fs::exists(full / kWeightsFile, fault)) {
    if (const auto damage = verify_checkpoint(full)) throw invalid_argument("model: ", *damage);
    return full;
  }
  if (fs::is_directory(full / "checkpoints", fault)) return best_of_run(full, warn);
  if (full.filename() == "checkpoints") return best_of_run(full.parent_path(), warn);
  throw invalid_argument("model: ", path.string(),
                         " holds no checkpoint, want a run, a checkpoint or a ", kWeightsFile);
}

Config config_of(const SafetensorsHeader& header, const fs::path& weights) {
  if (const auto found = header.metadata.find(kConfigKey); found != header.metadata.end())
    return parse_config(found->second, weights.string());
  const fs::path folder = weights.parent_path();
  for (const fs::path& file :
       {folder / "config.toml", folder.parent_path().parent_path() / "config.toml"})
    if (fs::exists(file)) return parse_config(read_file(file), file.string());
  throw invalid_argument("model: ", weights.string(), " has no ", kConfigKey,
                         " in its metadata and no config.toml near it");
}

std::int64_t step_of(const SafetensorsHeader& header) {
  std::int64_t step = 0;
  if (const auto found = header.metadata.find(kStepKey); found != header.metadata.end())
    std::from_chars(found->second.data(), found->second.data() + found->second.size(), step);
  return step;
}

}  // namespace

LoadedModel load_model(const fs::path& path, const Warn& warn) {
  const Warn tell = warn ? warn : [](const std::string&) {};
  const fs::path checkpoint = resolve(path, tell);
  const fs::path weights = fs::is_directory(checkpoint) ? checkpoint / kWeightsFile : checkpoint;
  const TensorFile file(weights);

  Config config = config_of(file.header(), weights);
  ParameterLayout layout(config.model);
  if (file.header().tensors.size() != layout.tensors.size())
    throw invalid_argument("model: ", weights.string(), " has ", file.header().tensors.size(),
                           " tensors, its config wants ", layout.tensors.size());
  Buffer<float> values(layout.extent);
  for (const auto& t : layout.tensors) file.read(t.name, t.shape, values.data() + t.offset);
  return {std::move(config), std::move(layout), std::move(values), checkpoint,
          step_of(file.header())};
}

}  // namespace longstride
