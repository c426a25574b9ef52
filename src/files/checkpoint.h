// Checkpoints of a run, written so that a kill or a full disk at any instant leaves a loadable one.
//
//   RUN/checkpoints/step-00001000/{model.safetensors, optimizer.safetensors, state.json,
//   manifest.json}
//
// Protocol: write into step-N.tmp-PID/ (looping on short writes), fsync and close each file with
// the result checked; write manifest.json (size and XXH3-128 of each file), fsync; fsync the
// directory; rename to step-N/; fsync the parent; re-open and verify; only then rotate old ones
// away. A failed fsync poisons the attempt: nothing is retried, the temporary folder is removed.
// The reader takes the newest folder whose manifest verifies, reports those it passed over, and
// ignores *.tmp-*.
//
// Where step-N/ is there already (the step was reached again after an older one was resumed), it is
// first renamed to step-N.old-PID, and removed when the new one has been verified. A kill between
// the two renames leaves the old one under that name alone: the reader takes *.old-* for a
// checkpoint of step N, behind step-N/ itself, and remove_stale_temporaries renames it back.
//
// PIDs are those of one machine: two machines must not write one run at the same time.
#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "files/safetensors.h"

namespace longstride {

struct CheckpointContents {
  std::int64_t step = 0;
  std::vector<TensorOut> model;      // model.safetensors: the weights to evaluate and sample with
  std::vector<TensorOut> optimizer;  // optimizer.safetensors
  std::string state_json;            // state.json
  std::map<std::string, std::string> metadata;  // of both safetensors files
};

// Throws environment_error naming path and errno; what was there before is then untouched.
// Returns the published folder.
std::filesystem::path write_checkpoint(const std::filesystem::path& run,
                                       const CheckpointContents& contents);

// Removes all but the newest `keep` (at least 1) verified checkpoints and those of the steps in
// `protect`; also what remove_stale_temporaries does. Where no checkpoint verifies, none is
// removed.
void rotate_checkpoints(const std::filesystem::path& run, std::int64_t keep,
                        const std::vector<std::int64_t>& protect);

// To call at the start of a writer: removes temporary files of the run and folders step-N.tmp-PID
// of dead processes (or of this one), and restores or removes step-N.old-PID.
void remove_stale_temporaries(const std::filesystem::path& run);

struct CheckpointInfo {
  std::filesystem::path folder;
  std::int64_t step = 0;
};

// The folders of all steps, ascending, unverified: step-N, or step-N.old-PID where it is alone.
std::vector<CheckpointInfo> list_checkpoints(const std::filesystem::path& run);

// Sizes and checksums against the manifest. nullopt: good; else one line saying what is wrong.
std::optional<std::string> verify_checkpoint(const std::filesystem::path& folder);

// The newest good one; calls warn(line) for each newer one that fails to verify.
std::optional<CheckpointInfo> newest_checkpoint(
    const std::filesystem::path& run, const std::function<void(const std::string&)>& warn);

// A safetensors file in memory, checked whole.
class TensorFile {
 public:
  explicit TensorFile(const std::filesystem::path& file);
  ~TensorFile();
  TensorFile(TensorFile&&) noexcept;
  const SafetensorsHeader& header() const;
  // Copies tensor `name` into out; throws invalid_argument where it is missing or its dtype is not
  // F32 or its shape differs from `shape`.
  void read(const std::string& name, const std::vector<std::int64_t>& shape, float* out) const;
  bool has(const std::string& name) const;

 private:
  struct Map;
  std::unique_ptr<Map> map_;
};

}  // namespace longstride
