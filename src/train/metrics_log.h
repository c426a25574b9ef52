// The log of a run: RUN/metrics.jsonl, one JSON object a line, and TensorBoard events.
//
//   {"step", "loss_bits", "lr", "grad_norm", "symbols", "skipped",      the same for the same
//   config
//    "seconds", "symbols_per_second", "flops_per_second"}               and these differ by run
//   {"step", "valid_bits", "valid_symbols", "best"}
// Numbers have 17 significant digits; those that are not finite are null. The checkpoint records
// how long metrics.jsonl was, and a resumed run cuts it back to that: no line stands twice.
#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <string>

#include "files/files.h"
#include "files/tensorboard.h"
#include "longstride/train.h"

namespace longstride {

class MetricsLog {
 public:
  // Cuts metrics.jsonl to its first `bytes`, the lines of the steps before `first_step`. Warns
  // where it is shorter than that.
  MetricsLog(const std::filesystem::path& run, std::int64_t first_step, std::int64_t bytes,
             const std::function<void(const std::string&)>& warn);

  void add(const StepReport& report);
  void add(const ValidationReport& report);
  std::int64_t sync();  // all lines are on disk; length of the file

 private:
  FileWriter lines_;
  TensorBoardWriter events_;
};

}  // namespace longstride
