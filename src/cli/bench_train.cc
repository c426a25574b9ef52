#include "cli/bench_train.h"

#include <fmt/format.h>

#include <cmath>

#include "cli/bench_report.h"
#include "cli/bench_run.h"
#include "cli/output.h"
#include "longstride/error.h"

namespace longstride::cli {

namespace {

using Json = nlohmann::ordered_json;

// Of the device that made the steps: on the GPU the run has measured it.
double peak_of(const BenchReport& peaks, const TrainTimes& t) {
  if (t.on_gpu()) return t.peak_flops;
  return t.plan.precision == "bf16" ? peaks.peak_bf16_flops : peaks.peak_flops;
}

struct Share {
  std::string name;
  double seconds, calls;  // of one step
};

// By operation, the longest first; last what is in none.
std::vector<Share> breakdown(const TrainTimes& t) {
  std::vector<Share> shares;
  const auto steps = static_cast<double>(t.profiled_steps);
  double rest = t.mean_seconds;
  for (const ProfileRow& row : t.profile) {
    shares.push_back({row.name, row.seconds / steps, static_cast<double>(row.calls) / steps});
    rest -= row.seconds / steps;
  }
  shares.push_back({"rest", std::max(rest, 0.0), 0});
  return shares;
}

Json times_json(const TrainTimes& t) {
  Json operations = Json::array();
  for (const Share& s : breakdown(t))
    operations.push_back({{"name", s.name},
                          {"seconds", s.seconds},
                          {"calls", s.calls},
                          {"share", s.seconds / t.mean_seconds}});
  return {{"device", t.plan.device},
          {"parameters", t.plan.parameters},
          {"micro_batch", t.plan.micro_batch},
          {"recompute", recompute_json(t.plan.recompute)},
          {"planned_memory", t.plan.total()},
          {"peak_memory", t.peak_memory},
          {"steps", t.steps},
          {"seconds_per_step", t.best_seconds},
          {"mean_seconds_per_step", t.mean_seconds},
          {"symbols_per_second", t.symbols / t.best_seconds},
          {"flops_per_step", t.flops},
          {"flops_per_second", t.flops / t.best_seconds},
          {"operations", operations}};
}

std::string times_text(const std::string& name, const TrainTimes& t, double peak) {
  const std::string& precision = t.plan.precision;
  std::string lines = fmt::format(
      "{}: {} parameters, {}, {}\n"
      "step        {:.4g} s (mean {:.4g}), {} tokens/s\n"
      "needed work {}flop, {}flop/s, {:.0f} % of {}flop/s (matrix product, {})\n"
      "memory      {} at most, {} planned, recomputation {}\n\n",
      name, with_commas(t.plan.parameters), precision,
      t.on_gpu() ? t.plan.device : fmt::format("{} threads", used_threads()), t.best_seconds,
      t.mean_seconds, with_unit(t.symbols / t.best_seconds), with_unit(t.flops),
      with_unit(t.flops / t.best_seconds), 100 * t.flops / t.best_seconds / peak, with_unit(peak),
      precision, as_bytes(t.peak_memory), as_bytes(t.plan.total()),
      recompute_text(t.plan.recompute));
  for (const Share& s : breakdown(t))
    lines += fmt::format("{:<24} {:>10.3f} ms {:>5.1f} % {:>6.0f} calls\n", s.name, s.seconds * 1e3,
                         100 * s.seconds / t.mean_seconds, s.calls);
  return lines;
}

// Width 256, 4 layers of 4 heads, half of them local, half column, l = sqrt N; batch 1.
Config growth_config(std::int64_t length, const std::vector<std::string>& settings) {
  const auto l = std::llround(std::sqrt(static_cast<double>(length)));
  std::vector<std::string> all = {"model.layers=4",
                                  "model.width=256",
                                  "model.heads=4",
                                  "model.qk_width=0",
                                  "model.ff_width=0",
                                  text("model.context=", length),
                                  text("model.attention=local(", l, "), column(", l, ")"),
                                  "train.batch=1",
                                  "train.recompute=auto"};
  all.insert(all.end(), settings.begin(), settings.end());
  return load_config("tiny-text", all);
}

struct Grown {
  Config config;
  TrainTimes times;
  double seconds_per_symbol() const { return times.best_seconds / times.symbols; }
};

std::vector<Grown> grow(const BenchGrowthArguments& a, Progress& progress) {
  constexpr std::int64_t kWarmUp = 1, kSteps = 2;
  std::vector<Grown> list;
  for (std::int64_t n = a.min_length; n <= a.max_length; n *= 2) {
    const TemporaryFolder folder;
    Config config = growth_config(n, a.settings);
    TrainTimes times = train_some({config, a.device, kWarmUp, kSteps}, progress, folder.path);
    list.push_back({std::move(config), std::move(times)});
  }
  return list;
}

std::vector<BenchFit> fits_of(const std::vector<Grown>& list) {
  std::vector<BenchRow> rows;
  for (const Grown& g : list) {
    BenchRow row;
    row.series = "training step per token";
    row.size = static_cast<double>(g.config.model.context);
    row.seconds = g.seconds_per_symbol();
    row.bf16 = g.times.plan.precision == "bf16";
    rows.push_back(row);
  }
  return fit_exponents(rows);
}

}  // namespace

int bench_train(const BenchTrainArguments& a, const Globals& globals) {
  const Config config = load_config(a.preset, a.settings);
  constexpr std::int64_t kWarmUp = 2;
  const TemporaryFolder folder;
  BenchReport peaks;
  TrainTimes t;
  {
    Progress progress(globals.quiet);
    t = train_some({config, a.device, kWarmUp, a.steps}, progress, folder.path);
    // Afterwards: its arrays would count as memory of the training. The GPU's own came with the
    // run.
    if (!t.on_gpu()) peaks = bench_peaks();
  }
  const double peak = peak_of(peaks, t);
  if (!globals.json) {
    print(times_text(a.preset, t, peak));
    return 0;
  }
  Json json = {{"machine", machine_json()},
               {"peak", t.on_gpu() ? Json{{"flops_per_second", peak}} : peaks_json(peaks)},
               {"preset", a.preset},
               {"precision", t.plan.precision}};
  json["batch"] = config.train.batch;
  json.update(times_json(t));
  json["share"] = t.flops / t.best_seconds / peak;
  print_json(json);
  return 0;
}

int bench_growth(const BenchGrowthArguments& a, const Globals& globals) {
  constexpr std::int64_t kLongest = std::int64_t{1} << 24;
  if (a.min_length > a.max_length || a.max_length > kLongest)
    throw invalid_argument("bench: lengths are ", a.min_length, " to ", a.max_length,
                           ", want min <= max <= ", kLongest);
  BenchReport peaks;
  std::vector<Grown> list;
  {
    Progress progress(globals.quiet);
    list = grow(a, progress);
    if (!list.back().times.on_gpu()) peaks = bench_peaks();
  }
  Json rows = Json::array(), fits = Json::array();
  std::string lines;
  for (const Grown& g : list) {
    const TrainTimes& t = g.times;
    const double share = t.flops / t.best_seconds / peak_of(peaks, t);
    Json json = {{"length", g.config.model.context},
                 {"attention", g.config.model.attention},
                 {"precision", t.plan.precision},
                 {"seconds_per_symbol", g.seconds_per_symbol()},
                 {"share", share}};
    json.update(times_json(t));
    rows.push_back(json);
    lines += fmt::format("N {:>8}  step {:>9.4f} s  {:>8.3f} us a token  {:>3.0f} % of peak  {}\n",
                         g.config.model.context, t.best_seconds, g.seconds_per_symbol() * 1e6,
                         100 * share, as_bytes(t.peak_memory));
  }
  for (const BenchFit& fit : fits_of(list)) {
    fits.push_back({{"series", fit.series}, {"exponent", fit.exponent}});
    lines += fmt::format("\n{}: time ~ N^{:.3f}\n", fit.series, fit.exponent);
  }
  if (globals.json)
    print_json({{"machine", machine_json()},
                {"peak", list.back().times.on_gpu()
                             ? Json{{"flops_per_second", list.back().times.peak_flops}}
                             : peaks_json(peaks)},
                {"growth", rows},
                {"fits", fits}});
  else
    print(lines);
  return 0;
}

}  // namespace longstride::cli
