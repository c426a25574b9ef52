#include "longstride/artifact.h"

#include "files/checkpoint.h"
#include "files/files.h"
#include "longstride/error.h"

namespace longstride {

namespace {

namespace fs = std::filesystem;

void add_tensors(ArtifactReport& report, const fs::path& file) {
  const TensorFile tensors(file);
  report.metadata = tensors.header().metadata;
  for (const TensorEntry& entry : tensors.header().tensors) {
    std::int64_t values = 1;  // the reader has checked the product
    for (const std::int64_t extent : entry.shape) values *= extent;
    report.tensors.push_back(
        {entry.name, entry.dtype, entry.shape, values, entry.end - entry.begin});
    report.values += values;
  }
}

CheckpointFact checked(const CheckpointInfo& info) {
  return {info.folder, info.step, verify_checkpoint(info.folder).value_or("")};
}

void add_run(ArtifactReport& report) {
  report.kind = ArtifactReport::Kind::run;
  if (fs::exists(report.path / "config.toml"))
    report.config = read_file(report.path / "config.toml");
  for (const CheckpointInfo& info : list_checkpoints(report.path))
    report.checkpoints.push_back(checked(info));
  for (auto newest = report.checkpoints.rbegin(); newest != report.checkpoints.rend(); ++newest)
    if (newest->fault.empty()) return add_tensors(report, newest->folder / "model.safetensors");
}

// "step-00001000" -> 1000; 0 where the folder has another name.
std::int64_t step_of(const fs::path& folder) {
  const std::string name = folder.filename().string();
  const std::size_t digits = name.find_last_not_of("0123456789") + 1;
  return name.size() - digits > 18 || digits == name.size() ? 0 : std::stoll(name.substr(digits));
}

void add_checkpoint(ArtifactReport& report) {
  report.kind = ArtifactReport::Kind::checkpoint;
  report.checkpoints.push_back(checked({report.path, step_of(report.path)}));
  add_tensors(report, report.path / "model.safetensors");
}

}  // namespace

ArtifactReport inspect_artifact(const fs::path& path) {
  ArtifactReport report;
  report.path = path;
  std::error_code error;
  const fs::file_status status = fs::status(path, error);
  if (status.type() == fs::file_type::not_found)
    throw invalid_argument("inspect: ", path.string(), " does not exist");
  if (status.type() != fs::file_type::directory) {
    report.kind = ArtifactReport::Kind::safetensors;
    add_tensors(report, path);
  } else if (fs::exists(path / "manifest.json", error)) {
    add_checkpoint(report);
  } else if (fs::exists(path / "config.toml", error) || fs::exists(path / "checkpoints", error)) {
    add_run(report);
  } else {
    throw invalid_argument("inspect: ", path.string(),
                           " is neither a run nor a checkpoint: no config.toml, no manifest.json");
  }
  return report;
}

}  // namespace longstride
