#include "longstride/sample.h"

#include <chrono>

#include "base/rng.h"
#include "longstride/error.h"
#include "model/model_files.h"
#include "sample/cuts.h"
#include "sample/predictor.h"

namespace longstride {

namespace {

void check(const SampleOptions& o) {
  if (o.length < 0) throw invalid_argument("sample: length is ", o.length, ", want >= 0");
  if (o.count < 0) throw invalid_argument("sample: count is ", o.count, ", want >= 0");
}

}  // namespace

SampleResult sample(const SampleOptions& options) {
  const auto start = std::chrono::steady_clock::now();
  const Cuts cuts{options.temperature, options.top_k, options.top_p, options.min_p};
  validate(cuts);
  check(options);
  const LoadedModel model = load_model(options.run_or_checkpoint, options.on_warning);
  const auto predictor = make_predictor(model.config.model, model.weights.vector(), options.cache);

  SampleResult result;
  result.cache_bytes = predictor->cache_bytes();
  for (std::int64_t s = 0; s < options.count && !result.stopped; ++s) {
    predictor->restart();
    std::string history = options.prompt;
    for (std::int64_t i = 0; i < options.length && !result.stopped; ++i) {
      const auto choices = apply(cuts, predictor->next(history));
      const Random4 r = random4(options.seed, Stream::sample, static_cast<std::uint64_t>(s),
                                static_cast<std::uint64_t>(i));
      const std::uint8_t symbol = draw(choices, uniform(r[0], r[1]));
      history.push_back(static_cast<char>(symbol));
      ++result.symbols;
      if (options.on_symbol && !options.on_symbol(s, symbol)) result.stopped = true;
    }
    result.samples.push_back(history.substr(options.prompt.size()));
  }
  result.seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  return result;
}

}  // namespace longstride
