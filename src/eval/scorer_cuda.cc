// Scoring on the GPU: some windows side by side in one pass, their tokens and nats copied in one
// piece each.
#include <algorithm>
#include <numbers>

#include "eval/scorer.h"
#include "longstride/error.h"
#include "model/cuda/training_pass_cuda.h"
#include "model/parameters.h"
#include "tensor/bf16.h"

namespace longstride {

namespace {

// Windows of one pass, by the model alone: bits shall not depend on what memory is free. Some
// 32,768 rows fill the card.
std::int64_t batch_of(const ModelConfig& m) {
  return std::max<std::int64_t>(1, std::int64_t{32768} / m.context);
}

constexpr DevicePassPlan kScoreOnly{.trains = false};

template <class A>
class CudaScorer final : public WindowScorer {
 public:
  explicit CudaScorer(const ModelConfig& model)
      : batch_(batch_of(model)),
        extent_(ParameterLayout(model).extent),
        pass_(model, batch_, kScoreOnly),
        tokens_(batch_ * model.context),
        nats_(batch_ * model.context),
        tokens_in_(batch_ * model.context),
        nats_out_(batch_ * model.context) {}

  void use(Vector<const float> weights) override {
    if (weights.size != extent_)
      throw internal_error("eval: ", weights.size, " weights, want ", extent_);
    cudaPointerAttributes where{};
    device::check(cudaPointerGetAttributes(&where, weights.data), "eval: weights");
    if (where.type != cudaMemoryTypeDevice) {
      if (copy_.size() == 0) copy_ = device::DeviceBuffer<float>(extent_);
      device::copy(stream_, copy_.data(), weights.data, copy_.bytes());
      weights = copy_.vector();
    }
    pass_.begin(stream_, weights);
    device::synchronize(stream_);
  }

  void score(const std::uint8_t* data, const Windows& windows, std::int64_t first,
             std::int64_t last, std::vector<double>& bits) override {
    for (std::int64_t w = first; w < last; w += batch_)
      score_together(data, windows, w, std::min(last, w + batch_), bits);
  }

  std::int64_t group() const override { return batch_; }

 private:
  // All in rows as long as the longest; what stands behind the end of a shorter one changes nothing
  // before it.
  void score_together(const std::uint8_t* data, const Windows& windows, std::int64_t first,
                      std::int64_t last, std::vector<double>& bits) {
    std::int64_t length = 0;
    for (std::int64_t w = first; w < last; ++w)
      length = std::max(length, windows[w].end - windows[w].begin);
    const std::int64_t rows = (last - first) * length;
    std::fill_n(tokens_in_.data(), rows, std::uint8_t{0});
    for (std::int64_t w = first; w < last; ++w)
      std::copy(data + windows[w].begin, data + windows[w].end,
                tokens_in_.data() + (w - first) * length);
    device::copy(stream_, tokens_.data(), tokens_in_.data(), rows);
    pass_.score(stream_, tokens_.data(), last - first, length, {nats_.data(), rows});
    device::copy(stream_, nats_out_.data(), nats_.data(),
                 rows * static_cast<std::int64_t>(sizeof(float)));
    device::synchronize(stream_);
    for (std::int64_t w = first; w < last; ++w) {
      const Window window = windows[w];
      const float* const nats = nats_out_.data() + (w - first) * length;
      for (std::int64_t i = window.first; i < window.end; ++i)
        bits.push_back(static_cast<double>(nats[i - window.begin]) / std::numbers::ln2);
    }
  }

  std::int64_t batch_, extent_;
  device::StreamOwner owner_;
  device::Stream stream_ = owner_.stream;
  DeviceTrainingPass<A> pass_;
  device::DeviceBuffer<float> copy_;  // of weights in host memory
  device::DeviceBuffer<std::uint8_t> tokens_;
  device::DeviceBuffer<float> nats_;
  device::PinnedBuffer<std::uint8_t> tokens_in_;
  device::PinnedBuffer<float> nats_out_;
};

}  // namespace

std::unique_ptr<WindowScorer> make_cuda_scorer(const ModelConfig& model,
                                               const std::string& precision) {
  if (precision == "bf16") return std::make_unique<CudaScorer<bf16>>(model);
  return std::make_unique<CudaScorer<float>>(model);
}

std::int64_t cuda_scorer_bytes(const ModelConfig& model, const std::string& precision) {
  const std::int64_t batch = batch_of(model);
  const ParameterLayout parameters(model);
  const DevicePassBytes pass =
      precision == "bf16" ? device_pass_bytes<bf16>(model, parameters, batch, kScoreOnly, 0)
                          : device_pass_bytes<float>(model, parameters, batch, kScoreOnly, 0);
  return pass.total() + parameters.extent * 4 + batch * model.context * 5;
}

}  // namespace longstride
