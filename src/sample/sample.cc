#include "longstride/sample.h"

#include <algorithm>
#include <chrono>
#include <utility>

#include "base/rng.h"
#include "device/choice.h"
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

// Samples side by side, as many as the predictor takes; reported in order all the same.
class Sampler {
 public:
  Sampler(const SampleOptions& options, const Cuts& cuts, Predictor& predictor)
      : options_(options), cuts_(cuts), predictor_(predictor) {}

  SampleResult run() {
    for (std::int64_t s = 0; s < options_.count && !result_.stopped; s += predictor_.most())
      together(s, std::min(predictor_.most(), options_.count - s));
    return std::move(result_);
  }

 private:
  // Samples [first, first + count): the symbols of the first are told as they come, those of the
  // others when it is their turn.
  void together(std::int64_t first, std::int64_t count) {
    predictor_.restart();
    std::vector<std::string> histories(static_cast<std::size_t>(count), options_.prompt);
    for (std::int64_t i = 0; i < options_.length && !result_.stopped; ++i) {
      const Matrix<const float> logits = predictor_.next(histories);
      for (std::int64_t n = 0; n < count; ++n)
        histories[static_cast<std::size_t>(n)].push_back(
            static_cast<char>(choose({logits.row(n), logits.cols}, first + n, i)));
      tell(first, histories[0].back());
    }
    result_.samples.push_back(histories[0].substr(options_.prompt.size()));
    for (std::int64_t n = 1; n < count && !result_.stopped; ++n) {
      std::string& text = result_.samples.emplace_back();
      for (const char c : histories[static_cast<std::size_t>(n)].substr(options_.prompt.size())) {
        text.push_back(c);
        tell(first + n, c);
        if (result_.stopped) break;
      }
    }
  }

  std::uint8_t choose(Vector<const float> logits, std::int64_t sample, std::int64_t i) const {
    const Random4 r = random4(options_.seed, Stream::sample, static_cast<std::uint64_t>(sample),
                              static_cast<std::uint64_t>(i));
    return draw(apply(cuts_, logits), uniform(r[0], r[1]));
  }

  void tell(std::int64_t sample, char symbol) {
    ++result_.symbols;
    if (options_.on_symbol && !options_.on_symbol(sample, static_cast<std::uint8_t>(symbol)))
      result_.stopped = true;
  }

  const SampleOptions& options_;
  const Cuts& cuts_;
  Predictor& predictor_;
  SampleResult result_;
};

}  // namespace

SampleResult sample(const SampleOptions& options) {
  const auto start = std::chrono::steady_clock::now();
  const Cuts cuts{options.temperature, options.top_k, options.top_p, options.min_p};
  validate(cuts);
  check(options);
  const bool cuda = device::on_cuda("sample", options.device);
  device::check_precision("sample", options.precision, cuda);
  const LoadedModel model = load_model(options.run_or_checkpoint, options.on_warning);
  const auto weights = model.weights.vector();
  const auto predictor = cuda ? make_cuda_predictor(model.config.model, weights, options.cache,
                                                    options.count, options.precision)
                              : make_predictor(model.config.model, weights, options.cache);
  SampleResult result = Sampler(options, cuts, *predictor).run();
  result.cache_bytes = predictor->cache_bytes();
  result.device = device::name_of(cuda);
  result.seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  return result;
}

}  // namespace longstride
