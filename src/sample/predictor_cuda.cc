#include <algorithm>

#include "base/integers.h"
#include "device/device.h"
#include "model/cuda/inference_cuda.h"
#include "model/cuda/training_pass_cuda.h"
#include "sample/predictor.h"

namespace longstride {

namespace {

const std::uint8_t* bytes_of(const std::string& text) {
  return reinterpret_cast<const std::uint8_t*>(text.data());
}

template <class A>
class CudaCachePredictor final : public Predictor {
 public:
  CudaCachePredictor(const ModelConfig& model, Vector<const float> weights, std::int64_t sequences)
      : decoder_(model, weights, sequences), context_(model.context), most_(sequences) {}

  std::int64_t most() const override { return most_; }

  Matrix<const float> next(const std::vector<std::string>& histories) override {
    const std::int64_t sequences = std::ssize(histories), h = std::ssize(histories[0]);
    const std::int64_t begin = window_begin(h, context_);
    if (begin != begin_) decoder_.restart(sequences);
    begin_ = begin;
    const std::int64_t first = begin + decoder_.known();
    new_.clear();
    for (const std::string& history : histories)
      new_.insert(new_.end(), bytes_of(history) + first, bytes_of(history) + h);
    decoder_.append(matrix<const std::uint8_t>(new_.data(), sequences, h - first));
    return decoder_.logits();
  }

  void restart() override { begin_ = -1; }
  std::int64_t cache_bytes() const override { return decoder_.cache_bytes(); }

 private:
  DeviceDecoder<A> decoder_;
  std::int64_t context_, most_;
  std::int64_t begin_ = -1;  // of the window that the decoder holds; -1: none
  std::vector<std::uint8_t> new_;
};

// One sequence at a time: products of many rows are cut by their shape, so that a row could depend
// on how many sequences are there.
template <class A>
class CudaFullPredictor final : public Predictor {
 public:
  CudaFullPredictor(const ModelConfig& model, Vector<const float> weights)
      : pass_(model, 1, {.trains = false}),
        context_(model.context),
        weights_(weights.size),
        tokens_(model.context),
        logits_(model.context * 256),
        row_(256) {
    device::copy(stream_, weights_.data(), weights.data, weights_.bytes());
    pass_.begin(stream_, weights_.vector());
    device::synchronize(stream_);
  }

  Matrix<const float> next(const std::vector<std::string>& histories) override {
    const std::string& history = histories.at(0);
    const auto h = std::ssize(history);
    const std::int64_t begin = window_begin(h, context_), seen = h - begin;
    // Row i does not depend on byte i and later ones, so these may be anything. Few lengths, for
    // the products to be planned few times.
    constexpr std::int64_t kStep = 256;
    const std::int64_t length = std::min(context_, ceil_div(seen + 1, kStep) * kStep);
    device::copy(stream_, tokens_.data(), history.data() + begin, seen);
    pass_.score(stream_, tokens_.data(), 1, length, {}, logits_.matrix(length, 256));
    device::copy(stream_, row_.data(), logits_.data() + seen * 256, row_.bytes());
    device::synchronize(stream_);
    return row_.matrix(1, 256);
  }

  void restart() override {}
  std::int64_t cache_bytes() const override { return 0; }

 private:
  device::StreamOwner owner_;
  device::Stream stream_ = owner_.stream;
  DeviceTrainingPass<A> pass_;
  std::int64_t context_;
  device::DeviceBuffer<float> weights_;
  device::DeviceBuffer<std::uint8_t> tokens_;
  device::DeviceBuffer<float> logits_;  // [context, 256]
  device::PinnedBuffer<float> row_;
};

template <class A>
std::unique_ptr<Predictor> make(const ModelConfig& model, Vector<const float> weights, bool cache,
                                std::int64_t sequences) {
  if (!cache) return std::make_unique<CudaFullPredictor<A>>(model, weights);
  const auto bytes = DeviceDecoder<A>::bytes(model);
  const std::int64_t free = device::devices().at(0).free / 10 * 9 - bytes.fixed;
  const std::int64_t fit = std::max<std::int64_t>(1, free / bytes.sequence);
  return std::make_unique<CudaCachePredictor<A>>(
      model, weights, std::clamp<std::int64_t>(std::min(sequences, fit), 1, kMostDecoded));
}

}  // namespace

std::unique_ptr<Predictor> make_cuda_predictor(const ModelConfig& model,
                                               Vector<const float> weights, bool cache,
                                               std::int64_t sequences,
                                               const std::string& precision) {
  return precision == "bf16" ? make<bf16>(model, weights, cache, sequences)
                             : make<float>(model, weights, cache, sequences);
}

}  // namespace longstride
