#include "cli/inspect_artifact.h"

#include <fmt/format.h>

#include "cli/output.h"
#include "longstride/artifact.h"

namespace longstride::cli {

namespace {

using Json = nlohmann::ordered_json;

const char* word(ArtifactReport::Kind kind) {
  switch (kind) {
    case ArtifactReport::Kind::run:
      return "run";
    case ArtifactReport::Kind::checkpoint:
      return "checkpoint";
    case ArtifactReport::Kind::safetensors:
      return "safetensors";
  }
  return "unknown";
}

Json to_json(const ArtifactReport& r) {
  Json checkpoints = Json::array(), tensors = Json::array();
  for (const CheckpointFact& c : r.checkpoints)
    checkpoints.push_back({{"checkpoint", c.folder.string()},
                           {"step", c.step},
                           {"good", c.fault.empty()},
                           {"fault", c.fault}});
  for (const TensorFact& t : r.tensors)
    tensors.push_back(
        {{"name", t.name}, {"dtype", t.dtype}, {"shape", t.shape}, {"bytes", t.bytes}});
  return {{"kind", word(r.kind)},       {"path", r.path.string()}, {"values", r.values},
          {"checkpoints", checkpoints}, {"metadata", r.metadata},  {"config", r.config},
          {"tensors", tensors}};
}

// Text of a file may hold anything: every line is cleaned for the terminal.
std::string describe(const ArtifactReport& r) {
  std::string out = fmt::format("{} {}\n", word(r.kind), one_line(r.path.string()));
  for (const CheckpointFact& c : r.checkpoints)
    out += fmt::format("step {:>8}  {}  {}\n", c.step, one_line(c.folder.string()),
                       c.fault.empty() ? "good" : "BAD: " + one_line(c.fault));
  for (const auto& [key, value] : r.metadata)
    out += fmt::format("{} = {}\n", one_line(key), one_line(value));
  for (const TensorFact& t : r.tensors)
    out += fmt::format("{:<28} {:<5} [{}]\n", one_line(t.name), one_line(t.dtype),
                       fmt::join(t.shape, ", "));
  out += fmt::format("{} values in {} tensors\n", with_commas(r.values), r.tensors.size());
  return r.config.empty() ? out : out + "\n" + r.config;
}

}  // namespace

int artifact_command(const std::string& path, bool json) {
  const ArtifactReport report = inspect_artifact(path);
  json ? print_json(to_json(report)) : print(describe(report));
  return 0;
}

}  // namespace longstride::cli
