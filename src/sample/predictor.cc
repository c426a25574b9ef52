#include "sample/predictor.h"

#include "model/inference.h"

namespace longstride {

namespace {

std::uint8_t byte(char c) { return static_cast<std::uint8_t>(c); }

class CachePredictor : public Predictor {
 public:
  CachePredictor(const ModelConfig& model, Vector<const float> weights)
      : decoder_(model, weights), context_(model.context) {}

  Matrix<const float> next(const std::vector<std::string>& histories) override {
    const std::string& history = histories.at(0);
    const auto h = std::ssize(history);
    const std::int64_t begin = window_begin(h, context_);
    if (begin != begin_) decoder_.restart();
    begin_ = begin;
    Vector<const float> logits;
    while (decoder_.position() <= h - begin) {
      const std::int64_t at = begin + decoder_.position();
      const bool first = decoder_.position() == 0;  // follows the start symbol
      logits = decoder_.step(first ? 0 : byte(history[static_cast<std::size_t>(at - 1)]));
    }
    return matrix(logits.data, 1, logits.size);
  }

  void restart() override { decoder_.restart(), begin_ = 0; }
  std::int64_t cache_bytes() const override { return decoder_.cache_bytes(); }

 private:
  Decoder<float> decoder_;
  std::int64_t context_, begin_ = 0;
};

class FullPredictor : public Predictor {
 public:
  FullPredictor(const ModelConfig& model, Vector<const float> weights)
      : pass_(model), weights_(weights), context_(model.context), logits_(model.context * 256) {}

  Matrix<const float> next(const std::vector<std::string>& histories) override {
    const std::string& history = histories.at(0);
    const auto h = std::ssize(history);
    const std::int64_t begin = window_begin(h, context_), length = h - begin + 1;
    // Row i does not depend on byte i, so the unknown one may be anything.
    const std::string seen = history.substr(static_cast<std::size_t>(begin)) + '\0';
    const auto rows = logits_.matrix(length, 256);
    pass_.logits(weights_, reinterpret_cast<const std::uint8_t*>(seen.data()), length, rows);
    return matrix<const float>(rows.row(length - 1), 1, 256);
  }

  void restart() override {}
  std::int64_t cache_bytes() const override { return 0; }

 private:
  FullPass<float> pass_;
  Vector<const float> weights_;
  std::int64_t context_;
  Buffer<float> logits_;  // [context, 256]
};

}  // namespace

std::int64_t window_begin(std::int64_t history, std::int64_t context) {
  if (history < context) return 0;
  const std::int64_t step = context - context / 2;
  return ((history - context) / step + 1) * step;
}

std::unique_ptr<Predictor> make_predictor(const ModelConfig& model, Vector<const float> weights,
                                          bool cache) {
  if (cache) return std::make_unique<CachePredictor>(model, weights);
  return std::make_unique<FullPredictor>(model, weights);
}

}  // namespace longstride
