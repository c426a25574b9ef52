#include "eval/scorer.h"

#include <algorithm>
#include <numbers>

#include "base/threads.h"
#include "longstride/error.h"

namespace longstride {

namespace {

// All passes that run side by side stay below this.
constexpr std::int64_t kPassMemory = std::int64_t{1} << 30;

// A FullPass and the nats of its window.
std::int64_t pass_bytes(const ModelConfig& m) {
  return full_pass_bytes(m) + m.context * static_cast<std::int64_t>(sizeof(float));
}

std::int64_t worker_count(const ModelConfig& m) {
  const std::int64_t fit = std::max<std::int64_t>(1, kPassMemory / pass_bytes(m));
  return std::min<std::int64_t>(threads(), fit);
}

}  // namespace

std::int64_t scorer_bytes(const ModelConfig& model) {
  return worker_count(model) * pass_bytes(model);
}

Scorer::Scorer(const ModelConfig& model) {
  for (std::int64_t w = worker_count(model); w > 0; --w)
    workers_.push_back(
        std::unique_ptr<Worker>(new Worker{FullPass<float>(model), Buffer<float>(model.context)}));
}

std::int64_t Scorer::group() const { return 4 * static_cast<std::int64_t>(workers_.size()); }

void Scorer::score(const std::uint8_t* data, const Windows& windows, std::int64_t first,
                   std::int64_t last, std::vector<double>& bits) {
  if (first >= last) return;
  const std::int64_t base = windows[first].first;  // windows score adjoining stretches
  const std::size_t old = bits.size();
  bits.resize(old + static_cast<std::size_t>(windows[last - 1].end - base));
  double* const out = bits.data() + old;

  const std::int64_t team = std::min<std::int64_t>(std::ssize(workers_), last - first);
  parallel_for(team, [&](std::int64_t t) {
    Worker& worker = *workers_[static_cast<std::size_t>(t)];
    for (std::int64_t w = first + t; w < last; w += team) {
      const Window window = windows[w];
      const std::int64_t length = window.end - window.begin;
      worker.pass.nats(weights_, data + window.begin, length, {worker.nats.data(), length});
      for (std::int64_t i = window.first; i < window.end; ++i)
        out[i - base] = static_cast<double>(worker.nats[i - window.begin]) / std::numbers::ln2;
    }
  });
}

double mean_bits(WindowScorer& scorer, Vector<const float> weights, const std::uint8_t* data,
                 std::int64_t symbols, std::int64_t context) {
  if (symbols < 1) throw invalid_argument("eval: ", symbols, " symbols to score, want >= 1");
  const Windows windows(symbols, context, 0);
  scorer.use(weights);
  double sum = 0;
  std::vector<double> bits;
  for (std::int64_t w = 0; w < windows.count(); w += scorer.group()) {
    bits.clear();
    scorer.score(data, windows, w, std::min(windows.count(), w + scorer.group()), bits);
    for (const double b : bits) sum += b;
  }
  return sum / static_cast<double>(symbols);
}

}  // namespace longstride
