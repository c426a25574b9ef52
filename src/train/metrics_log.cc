#include "train/metrics_log.h"

#include <fmt/format.h>

#include <cmath>

#include "longstride/error.h"

namespace longstride {

namespace fs = std::filesystem;

namespace {

std::string number(double value) {
  return std::isfinite(value) ? fmt::format("{:.17g}", value) : "null";
}

// The file as it shall be appended to.
fs::path cut(const fs::path& file, std::int64_t bytes,
             const std::function<void(const std::string&)>& warn) {
  std::error_code missing;
  const auto size = fs::file_size(file, missing);
  const std::int64_t there = missing ? 0 : static_cast<std::int64_t>(size);
  if (there < bytes && warn)
    warn(text("train: ", file.string(), " has ", there, " bytes, the checkpoint says ", bytes,
              "; lines of earlier steps are lost"));
  if (there > bytes) truncate_file(file, bytes);
  return file;
}

}  // namespace

MetricsLog::MetricsLog(const fs::path& run, std::int64_t first_step, std::int64_t bytes,
                       const std::function<void(const std::string&)>& warn)
    : lines_(cut(run / "metrics.jsonl", bytes, warn), /*append=*/true), events_(run, first_step) {}

void MetricsLog::add(const StepReport& r) {
  lines_.write(
      fmt::format("{{\"step\":{},\"loss_bits\":{},\"lr\":{},\"grad_norm\":{},\"symbols\":{},"
                  "\"skipped\":{},\"seconds\":{},\"symbols_per_second\":{},"
                  "\"flops_per_second\":{}}}\n",
                  r.step, number(r.bits), number(r.lr), number(r.grad_norm), r.symbols, r.skipped,
                  number(r.seconds), number(r.symbols_per_second), number(r.flops_per_second)));
  events_.add(r.step, {{"train/bits", r.bits},
                       {"train/lr", r.lr},
                       {"train/grad_norm", r.grad_norm},
                       {"speed/symbols_per_second", r.symbols_per_second}});
}

void MetricsLog::add(const ValidationReport& r) {
  lines_.write(fmt::format("{{\"step\":{},\"valid_bits\":{},\"valid_symbols\":{},\"best\":{}}}\n",
                           r.step, number(r.bits), r.symbols, r.best));
  events_.add(r.step, {{"valid/bits", r.bits}});
}

std::int64_t MetricsLog::sync() {
  lines_.flush_to_disk();
  return lines_.size();
}

}  // namespace longstride
