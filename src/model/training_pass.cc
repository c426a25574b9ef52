#include "model/training_pass.h"

#include <algorithm>
#include <cstring>
#include <type_traits>
#include <vector>

#include "base/profile.h"
#include "longstride/error.h"
#include "model/block.h"
#include "model/layer_plans.h"
#include "model/parameters.h"
#include "model/weights.h"
#include "ops/convert/convert.h"
#include "ops/cross_entropy/cross_entropy.h"
#include "ops/embedding/embedding.h"
#include "ops/layer_norm/layer_norm.h"
#include "ops/linear/linear.h"

namespace longstride {

namespace {

constexpr std::int64_t kSymbols = 256;

// A: what products and attention read (block.h).
template <class T, class A>
class Pass final : public AnyPass<T> {
 public:
  Pass(const ModelConfig& config, std::int64_t batch, bool again)
      : model_(config),
        layout_(config),
        plans_(config),
        shape_(config, batch),
        recompute_(again),
        scratch_(shape_),
        narrow_(std::is_same_v<T, A> ? 0 : layout_.extent),
        stream_(shape_.row_block() * shape_.width),
        mean_(shape_.row_block()),
        rstd_(shape_.row_block()),
        logits_(shape_.row_block() * kSymbols),
        dlogits_(std::is_same_v<T, A> ? 0 : shape_.row_block() * kSymbols),
        nats_(shape_.rows()),
        dh_(shape_.rows() * shape_.width) {
    for (std::int64_t r = 0; r < model_.layers; ++r)
      inputs_.emplace_back(shape_.rows() * shape_.width);
    for (std::int64_t r = 0; r < (recompute_ ? 1 : model_.layers); ++r)
      kept_.emplace_back(shape_, !recompute_);
  }

  static TrainingBytes bytes(const ModelConfig& model, std::int64_t batch, bool recompute) {
    const BlockShape s(model, batch);
    const auto t = static_cast<std::int64_t>(sizeof(T)), a = static_cast<std::int64_t>(sizeof(A));
    const bool same = std::is_same_v<T, A>;
    const std::int64_t instances = recompute ? 1 : model.layers;
    const std::int64_t ends =
        s.row_block() * (t * (s.width + 2 + kSymbols) + (same ? 0 : a * kSymbols)) +
        s.rows() * t * (s.width + 1);
    return {t * model.layers * s.rows() * s.width +
                instances * BlockActivations<T, A>::bytes(s, !recompute),
            ends + BlockScratch<T, A>::bytes(s) + (same ? 0 : a * ParameterLayout(model).extent)};
  }

  double run(Vector<const T> weights, const std::uint8_t* tokens, double scale, const PassKey& key,
             Vector<T> gradients) override {
    const Weights w = view(weights);
    const bool wanted = !gradients.empty();
    const Gradients g = wanted ? view_weights(model_, layout_, gradients) : Gradients{};
    forward(w, tokens, key);
    output(w, tokens, static_cast<T>(scale), wanted ? &g : nullptr);
    if (wanted) backward(w, tokens, key, g);
    double sum = 0;
    for (std::int64_t i = 0; i < nats_.size(); ++i) sum += static_cast<double>(nats_[i]);
    return sum;
  }

 private:
  using Weights = ModelWeights<const T, const A>;
  using Gradients = ModelWeights<T>;

  Weights view(Vector<const T> weights) {
    if constexpr (std::is_same_v<T, A>) {
      return view_weights(model_, layout_, weights);
    } else {
      const Timed timed("convert");
      ops::convert(weights, narrow_.vector());
      return view_weights(model_, layout_, weights, Vector<const A>(narrow_.vector()));
    }
  }

  // Of each block; the output of the last one stands where its gradient will [R, d].
  Matrix<T> input(std::int64_t layer) {
    const auto& buffer = layer < model_.layers ? inputs_[static_cast<std::size_t>(layer)] : dh_;
    return buffer.matrix(shape_.rows(), shape_.width);
  }

  BlockCall<T, A> call(std::int64_t layer, const Weights& w, const PassKey& key) {
    const auto r = static_cast<std::size_t>(layer);
    const ops::Dropout dropout{model_.dropout, key.seed, key.step,
                               static_cast<std::uint32_t>(2 * layer),
                               key.first_sequence * shape_.length};
    return {shape_,
            plans_.of_layer(layer),
            score_scale<T>(model_),
            w.blocks[r],
            dropout,
            kept_[recompute_ ? 0 : r],
            scratch_};
  }

  void forward(const Weights& w, const std::uint8_t* tokens, const PassKey& key);
  void output(const Weights& w, const std::uint8_t* tokens, T scale, const Gradients* g);
  void output_rows(const Weights& w, const std::uint8_t* targets, T scale, const Gradients* g,
                   std::int64_t begin, std::int64_t rows);
  void backward(const Weights& w, const std::uint8_t* tokens, const PassKey& key,
                const Gradients& g);

  ModelConfig model_;
  ParameterLayout layout_;
  LayerPlans plans_;
  BlockShape shape_;
  bool recompute_;
  std::vector<Buffer<T>> inputs_;
  std::vector<BlockActivations<T, A>> kept_;  // one a layer, or one for all
  BlockScratch<T, A> scratch_;
  Buffer<A> narrow_;  // the weights in A; empty where A is T
  // The output layer, of one row block:
  Buffer<T> stream_;       // what enters the final norm [Z, d]
  Buffer<T> mean_, rstd_;  // [Z]
  Buffer<T> logits_;       // [Z, 256]
  Buffer<A> dlogits_;      // their gradient; empty where A is T, which uses logits_
  Buffer<T> nats_;         // [R]
  Buffer<T> dh_;           // gradient of the residual stream [R, d]
};

template <class T, class A>
void Pass<T, A>::forward(const Weights& w, const std::uint8_t* tokens, const PassKey& key) {
  {
    const Timed timed("embedding");
    ops::Embedding<T> embedding;
    embedding.tokens = tokens;
    embedding.batch = shape_.batch;
    embedding.length = shape_.length;
    embedding.bytes = w.bytes;
    embedding.axes = w.axes;
    embedding.start = w.start;
    embedding.y = input(0);
    ops::embedding(embedding);
  }
  for (std::int64_t r = 0; r < model_.layers; ++r)
    block_forward<T, A>(call(r, w, key), input(r), input(r + 1));
}

// Final norm, logits and loss of each row block, and at once their gradients: the scale of the loss
// is known, so neither logits nor the final norm are kept.
template <class T, class A>
void Pass<T, A>::output(const Weights& w, const std::uint8_t* tokens, T scale, const Gradients* g) {
  const std::int64_t step = shape_.row_block();
  for (std::int64_t begin = 0; begin < shape_.rows(); begin += step)
    output_rows(w, tokens + begin, scale, g, begin, std::min(step, shape_.rows() - begin));
}

template <class T, class A>
void Pass<T, A>::output_rows(const Weights& w, const std::uint8_t* targets, T scale,
                             const Gradients* g, std::int64_t begin, std::int64_t rows) {
  const Matrix<T> stream = matrix(dh_.data() + begin * shape_.width, rows, shape_.width);
  const auto h = stream_.matrix(rows, shape_.width);
  const auto x = scratch_.x.matrix(rows, shape_.width);
  const auto dx = scratch_.dx.matrix(rows, shape_.width);
  const auto logits = logits_.matrix(rows, kSymbols);
  const Vector<T> mean{mean_.data(), rows}, rstd{rstd_.data(), rows};
  const auto bytes = static_cast<std::size_t>(rows * shape_.width) * sizeof(T);
  std::memcpy(h.data, stream.data, bytes);
  {
    const Timed timed("norm");
    ops::layer_norm(
        ops::LayerNorm<T, A>{h, w.norm.gain, w.norm.bias, x, mean, rstd, T(kFinalNormEps)});
  }
  {
    const Timed timed("linear");
    ops::linear_forward(ops::Linear<A, T>{x, w.head, {}, logits});
  }
  Matrix<A> dlogits;
  if constexpr (std::is_same_v<T, A>)
    dlogits = logits;
  else
    dlogits = dlogits_.matrix(rows, kSymbols);
  {
    const Timed timed("loss");
    ops::cross_entropy(ops::CrossEntropy<T, A>{
        logits, targets, {nats_.data() + begin, rows}, g ? dlogits : Matrix<A>{}, scale});
  }
  if (!g) return;
  {
    const Timed timed("linear backward");
    ops::linear_backward(ops::LinearBackward<A, T>{x, w.head, dlogits, dx, false, g->head, {}});
  }
  const Timed timed("norm");
  std::memset(static_cast<void*>(stream.data), 0, bytes);
  ops::layer_norm_backward(ops::LayerNormBackward<T>{h, w.norm.gain, mean, rstd, dx, stream,
                                                     g->norm.gain, g->norm.bias});
}

template <class T, class A>
void Pass<T, A>::backward(const Weights& w, const std::uint8_t* tokens, const PassKey& key,
                          const Gradients& g) {
  const auto stream = dh_.matrix(shape_.rows(), shape_.width);
  for (std::int64_t r = model_.layers - 1; r >= 0; --r) {
    const auto block = call(r, w, key);
    if (recompute_) block_attention<T, A>(block, input(r));
    block_backward<T, A>(block, input(r), stream, g.blocks[static_cast<std::size_t>(r)]);
  }

  const Timed timed("embedding");
  ops::EmbeddingBackward<T> embedding;
  embedding.tokens = tokens;
  embedding.batch = shape_.batch;
  embedding.length = shape_.length;
  embedding.dy = stream;
  embedding.dbytes = g.bytes;
  embedding.daxes = g.axes;
  embedding.dstart = g.start;
  ops::embedding_backward(embedding);
}

}  // namespace

TrainingBytes training_bytes(const ModelConfig& model, std::int64_t batch, bool recompute,
                             bool in_bf16) {
  return in_bf16 ? Pass<float, bf16>::bytes(model, batch, recompute)
                 : Pass<float, float>::bytes(model, batch, recompute);
}

template <class T>
TrainingPass<T>::TrainingPass(const ModelConfig& model, std::int64_t batch, bool recompute,
                              bool in_bf16) {
  if (!in_bf16) {
    pass_ = std::make_unique<Pass<T, T>>(model, batch, recompute);
    return;
  }
  if constexpr (std::is_same_v<T, float>)
    pass_ = std::make_unique<Pass<float, bf16>>(model, batch, recompute);
  else
    throw internal_error("training pass: bf16 stands beside float only");
}

template <class T>
TrainingPass<T>::~TrainingPass() = default;

template <class T>
double TrainingPass<T>::run(Vector<const T> weights, const std::uint8_t* tokens, double scale,
                            const PassKey& key, Vector<T> gradients) {
  return pass_->run(weights, tokens, scale, key, gradients);
}

template class TrainingPass<float>;
template class TrainingPass<double>;

}  // namespace longstride
