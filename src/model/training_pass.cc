#include "model/training_pass.h"

#include <vector>

#include "model/block.h"
#include "model/layer_plans.h"
#include "model/parameters.h"
#include "model/weights.h"
#include "ops/cross_entropy/cross_entropy.h"
#include "ops/embedding/embedding.h"
#include "ops/layer_norm/layer_norm.h"
#include "ops/linear/linear.h"

namespace longstride {

TrainingBytes training_bytes(const ModelConfig& model, std::int64_t batch, bool recompute) {
  const BlockShape s(model, batch);
  const std::int64_t instances = recompute ? 1 : model.layers;
  const std::int64_t inputs = (model.layers + 1) * s.rows() * s.width;
  // Final norm, logits, nats, gradient of the stream.
  const std::int64_t ends = s.rows() * (2 * s.width + 256 + 3);
  constexpr std::int64_t kSize = sizeof(float);
  return {kSize * (inputs + instances * BlockActivations<float>::elements(s)),
          kSize * (ends + BlockScratch<float>::elements(s))};
}

template <class T>
struct TrainingPass<T>::State {
  State(const ModelConfig& config, std::int64_t batch, bool again)
      : model(config),
        layout(config),
        plans(config),
        shape(config, batch),
        recompute(again),
        scratch(shape),
        normed(shape.rows() * shape.width),
        mean(shape.rows()),
        rstd(shape.rows()),
        logits(shape.rows() * 256),
        nats(shape.rows()),
        dh(shape.rows() * shape.width) {
    for (std::int64_t r = 0; r <= model.layers; ++r)
      inputs.emplace_back(shape.rows() * shape.width);
    for (std::int64_t r = 0; r < (recompute ? 1 : model.layers); ++r) kept.emplace_back(shape);
  }

  Matrix<T> input(std::int64_t layer) {
    return inputs[static_cast<std::size_t>(layer)].matrix(shape.rows(), shape.width);
  }

  BlockCall<T> call(std::int64_t layer, const ModelWeights<const T>& w, const PassKey& key) {
    const auto r = static_cast<std::size_t>(layer);
    const ops::Dropout dropout{model.dropout, key.seed, key.step,
                               static_cast<std::uint32_t>(2 * layer),
                               key.first_sequence * shape.length};
    return {shape,
            plans.of_layer(layer),
            score_scale<T>(model),
            w.blocks[r],
            dropout,
            kept[recompute ? 0 : r],
            scratch};
  }

  double forward(const ModelWeights<const T>& w, const std::uint8_t* tokens, T scale,
                 const PassKey& key, bool want_gradients);
  void backward(const ModelWeights<const T>& w, const std::uint8_t* tokens, const PassKey& key,
                const ModelWeights<T>& g);

  ModelConfig model;
  ParameterLayout layout;
  LayerPlans plans;
  BlockShape shape;
  bool recompute;
  std::vector<Buffer<T>> inputs;          // of each block, and the output of the last [R, d]
  std::vector<BlockActivations<T>> kept;  // one a layer, or one for all
  BlockScratch<T> scratch;
  Buffer<T> normed, mean, rstd;  // the final norm
  Buffer<T> logits, nats;        // [R, 256] (then their gradient), [R]
  Buffer<T> dh;                  // gradient of the residual stream [R, d]
};

template <class T>
double TrainingPass<T>::State::forward(const ModelWeights<const T>& w, const std::uint8_t* tokens,
                                       T scale, const PassKey& key, bool want_gradients) {
  ops::Embedding<T> embedding;
  embedding.tokens = tokens;
  embedding.batch = shape.batch;
  embedding.length = shape.length;
  embedding.bytes = w.bytes;
  embedding.axes = w.axes;
  embedding.start = w.start;
  embedding.y = input(0);
  ops::embedding(embedding);

  for (std::int64_t r = 0; r < model.layers; ++r)
    block_forward<T>(call(r, w, key), input(r), input(r + 1));

  const auto x = normed.matrix(shape.rows(), shape.width);
  const auto out = logits.matrix(shape.rows(), 256);
  ops::layer_norm(ops::LayerNorm<T>{input(model.layers), w.norm.gain, w.norm.bias, x, mean.vector(),
                                    rstd.vector(), T(kFinalNormEps)});
  ops::linear_forward(ops::Linear<T>{x, w.head, {}, out});
  ops::cross_entropy(
      ops::CrossEntropy<T>{out, tokens, nats.vector(), want_gradients ? out : Matrix<T>{}, scale});
  double sum = 0;
  for (std::int64_t i = 0; i < nats.size(); ++i) sum += static_cast<double>(nats[i]);
  return sum;
}

template <class T>
void TrainingPass<T>::State::backward(const ModelWeights<const T>& w, const std::uint8_t* tokens,
                                      const PassKey& key, const ModelWeights<T>& g) {
  const std::int64_t R = shape.rows();
  const Matrix<const T> x = normed.matrix(R, shape.width);
  const Matrix<const T> dlogits = logits.matrix(R, 256);
  const auto dx = scratch.dx.matrix(R, shape.width);
  const auto stream = dh.matrix(R, shape.width);
  ops::linear_backward(ops::LinearBackward<T>{x, w.head, dlogits, dx, false, g.head, {}});
  std::memset(static_cast<void*>(dh.data()), 0, static_cast<std::size_t>(dh.size()) * sizeof(T));
  ops::layer_norm_backward(ops::LayerNormBackward<T>{input(model.layers), w.norm.gain,
                                                     mean.vector(), rstd.vector(), dx, stream,
                                                     g.norm.gain, g.norm.bias});

  for (std::int64_t r = model.layers - 1; r >= 0; --r) {
    const auto block = call(r, w, key);
    if (recompute) block_forward<T>(block, input(r), {});
    block_backward<T>(block, input(r), stream, g.blocks[static_cast<std::size_t>(r)]);
  }

  ops::EmbeddingBackward<T> embedding;
  embedding.tokens = tokens;
  embedding.batch = shape.batch;
  embedding.length = shape.length;
  embedding.dy = stream;
  embedding.dbytes = g.bytes;
  embedding.daxes = g.axes;
  embedding.dstart = g.start;
  ops::embedding_backward(embedding);
}

template <class T>
TrainingPass<T>::TrainingPass(const ModelConfig& model, std::int64_t batch, bool recompute)
    : state_(std::make_unique<State>(model, batch, recompute)) {}

template <class T>
TrainingPass<T>::~TrainingPass() = default;

template <class T>
double TrainingPass<T>::run(Vector<const T> weights, const std::uint8_t* tokens, double scale,
                            const PassKey& key, Vector<T> gradients) {
  State& s = *state_;
  const auto w = view_weights(s.model, s.layout, weights);
  const double nats = s.forward(w, tokens, static_cast<T>(scale), key, !gradients.empty());
  if (!gradients.empty()) s.backward(w, tokens, key, view_weights(s.model, s.layout, gradients));
  return nats;
}

template class TrainingPass<float>;
template class TrainingPass<double>;

}  // namespace longstride
