#include "cli/bench_report.h"

#include <fmt/chrono.h>
#include <fmt/format.h>

#include <ctime>

#include "cli/output.h"

namespace longstride::cli {

namespace {

using Json = nlohmann::ordered_json;

Json row_json(const BenchRow& row, const BenchReport& report) {
  const BenchFloor floor = floor_of(row, report);
  Json json = {{"series", row.series},
               {"shape", row.shape},
               {"precision", row.bf16 ? "bf16" : "f32"},
               {"size", row.size},
               {"seconds", row.seconds},
               {"flops", row.flops},
               {"bytes", row.bytes},
               {"flops_per_second", row.flops / row.seconds},
               {"bytes_per_second", row.bytes / row.seconds},
               {"floor_seconds", floor.seconds},
               {"bound", floor.memory_binds ? "memory" : "compute"},
               {"share", floor.seconds / row.seconds}};
  if (row.tile_flops > 0) {
    const double peak = row.bf16 ? report.peak_bf16_flops : report.peak_flops;
    json["tile_flops"] = row.tile_flops;
    json["tile_flops_per_second"] = row.tile_flops / row.seconds;
    json["tile_share"] = row.tile_flops / row.seconds / peak;
  }
  return json;
}

std::string row_line(const BenchRow& row, const BenchReport& report, std::size_t series,
                     std::size_t shape) {
  const BenchFloor floor = floor_of(row, report);
  const std::string tiles =
      row.tile_flops > 0 ? fmt::format("{:.1f}", row.tile_flops / row.seconds * 1e-9) : "";
  return fmt::format(
      "{:<{}}  {:<{}}  {:<4}  {:>10.4f}  {:>9.1f}  {:>9}  {:>7.2f}  {:>10.4f}  {:>4.0f} % of {}\n",
      row.series, series, row.shape, shape, row.bf16 ? "bf16" : "f32", row.seconds * 1e3,
      row.flops / row.seconds * 1e-9, tiles, row.bytes / row.seconds * 1e-9, floor.seconds * 1e3,
      100 * floor.seconds / row.seconds, floor.memory_binds ? "memory" : "compute");
}

std::string table(const BenchReport& report) {
  std::size_t series = 0, shape = 0;
  for (const BenchRow& row : report.rows) {
    series = std::max(series, row.series.size());
    shape = std::max(shape, row.shape.size());
  }
  std::string lines = fmt::format(
      "peak {}flop/s f32, {}flop/s bf16 (matrix products), {}B/s (copy), {} threads\n\n"
      "{:<{}}  {:<{}}  {:<4}  {:>10}  {:>9}  {:>9}  {:>7}  {:>10}\n",
      with_unit(report.peak_flops), with_unit(report.peak_bf16_flops), with_unit(report.peak_bytes),
      used_threads(), "", series, "", shape, "", "ms", "Gflop/s", "in tiles", "GB/s", "floor ms");
  for (const BenchRow& row : report.rows) lines += row_line(row, report, series, shape);
  for (const BenchFit& fit : report.fits)
    lines += fmt::format("\n{}: time ~ N^{:.3f}", fit.series, fit.exponent);
  return lines + (report.fits.empty() ? "" : "\n");
}

}  // namespace

Json machine_json() {
  Json json = Json::object();
  for (const Fact& fact : doctor())
    for (const char* name : {"processor", "instruction set", "instruction set of oneDNN", "cores",
                             "memory", "compiler", "build"})
      if (fact.name == name) json[name] = fact.value;
  json["threads"] = used_threads();
  json["version"] = kVersion;
  json["date"] = fmt::format("{:%Y-%m-%dT%H:%M:%SZ}", fmt::gmtime(std::time(nullptr)));
  return json;
}

Json peaks_json(const BenchReport& report) {
  return {{"f32_flops_per_second", report.peak_flops},
          {"bf16_flops_per_second", report.peak_bf16_flops},
          {"bytes_per_second", report.peak_bytes}};
}

void print_report(const BenchReport& report, bool json) {
  if (!json) return print(table(report));
  Json rows = Json::array(), fits = Json::array();
  for (const BenchRow& row : report.rows) rows.push_back(row_json(row, report));
  for (const BenchFit& fit : report.fits)
    fits.push_back({{"series", fit.series}, {"exponent", fit.exponent}});
  print_json(
      {{"machine", machine_json()}, {"peak", peaks_json(report)}, {"rows", rows}, {"fits", fits}});
}

}  // namespace longstride::cli
