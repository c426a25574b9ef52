#include <fmt/format.h>

#include <chrono>

#include "cli/bench_report.h"
#include "cli/bench_run.h"
#include "cli/bench_train.h"
#include "cli/output.h"
#include "longstride/error.h"
#include "longstride/inspect.h"
#include "longstride/pattern.h"
#include "longstride/sample.h"

namespace longstride::cli {

namespace {

// Least bytes that generating one symbol reads, over the first `length` positions: the weights of
// all products once, and the key and value of each kept pair.
double bytes_of_symbol(const ModelConfig& model, std::int64_t length) {
  const auto d = model.width, qk = model.qk(), ff = model.ff();
  const std::int64_t layer = 2 * d * qk + 2 * d * d + 2 * d * ff;
  double values = static_cast<double>(model.layers * layer + d * 256);
  for (std::int64_t i = 0; i < model.layers; ++i) {
    PatternOptions options;
    options.spec = model.attention[static_cast<std::size_t>(i) % model.attention.size()];
    options.length = length;
    options.heads = model.heads;
    options.head_width = d / model.heads;
    const double pairs = static_cast<double>(inspect_pattern(options).pairs);
    values += pairs / static_cast<double>(length) * static_cast<double>((qk + d) / model.heads);
  }
  return values * sizeof(float);
}

struct SampleTimes {
  double seconds = 0;  // from the first symbol to the last
  std::int64_t symbols = 0, cache_bytes = 0;
};

SampleTimes sample_some(const std::filesystem::path& run, std::int64_t length) {
  using Clock = std::chrono::steady_clock;
  Clock::time_point first, last;
  SampleOptions options;
  options.run_or_checkpoint = run;
  options.length = length;
  std::int64_t seen = 0;
  options.on_symbol = [&](std::int64_t, std::uint8_t) {
    last = Clock::now();
    if (seen++ == 0) first = last;
    return true;
  };
  const SampleResult result = sample(options);
  return {std::chrono::duration<double>(last - first).count(), seen - 1, result.cache_bytes};
}

}  // namespace

int bench_sample(const BenchSampleArguments& a, const Globals& globals) {
  constexpr std::int64_t kMost = 2000;
  const Config config = load_config(a.preset, a.settings);
  const std::int64_t context = config.model.context;
  const std::int64_t length = a.length > 0 ? a.length : std::min(context, kMost);
  if (length < 2 || length > context)
    throw invalid_argument("bench: length is ", length, ", want 2 to model.context ", context);
  const TemporaryFolder folder;
  BenchReport peaks;
  SampleTimes t;
  {
    Progress progress(globals.quiet);
    peaks = bench_peaks();
    train_some({config, "cpu", 0, 1, true}, progress, folder.path);
    t = sample_some(folder.path / "run", length);
  }
  const double rate = static_cast<double>(t.symbols) / t.seconds;
  const double bytes = bytes_of_symbol(config.model, length);
  const double share = rate * bytes / peaks.peak_bytes;
  if (globals.json)
    print_json({{"machine", machine_json()},
                {"peak", peaks_json(peaks)},
                {"preset", a.preset},
                {"parameters", count_parameters(config.model)},
                {"symbols", t.symbols},
                {"seconds", t.seconds},
                {"symbols_per_second", rate},
                {"cache_bytes", t.cache_bytes},
                {"bytes_per_symbol", bytes},
                {"bytes_per_second", rate * bytes},
                {"share", share}});
  else
    print(fmt::format(
        "{}: {} bytes/s, {} threads\n"
        "cache       {}\n"
        "least reads {} a byte generated, {}B/s, {:.0f} % of {}B/s (copy)\n",
        a.preset, with_unit(rate), used_threads(), as_bytes(t.cache_bytes), with_unit(bytes),
        with_unit(rate * bytes), 100 * share, with_unit(peaks.peak_bytes)));
  return 0;
}

}  // namespace longstride::cli
