#include "model/inference.h"

#include <algorithm>
#include <vector>

#include "longstride/error.h"
#include "model/layer_plans.h"
#include "model/parameters.h"
#include "model/weights.h"
#include "ops/activation/activation.h"
#include "ops/attention/attention.h"
#include "ops/attention/decode.h"
#include "ops/cross_entropy/cross_entropy.h"
#include "ops/embedding/embedding.h"
#include "ops/layer_norm/layer_norm.h"
#include "ops/linear/linear.h"
#include "ops/residual/residual.h"

namespace longstride {

namespace {

// Logits are taken for so many positions at a time, so that a pass over a million positions does
// not hold 256 million of them. Rows do not depend on each other: same bits.
constexpr std::int64_t kLogitRows = 4096;

// Buffers of one pass over up to `rows` positions, and the network around the attention, which the
// full pass and the decoder compute differently and pass in.
template <class T>
struct Rows {
  Rows(const ModelConfig& model, std::int64_t rows)
      : width(model.width),
        qk_width(model.qk()),
        ff_width(model.ff()),
        stream(rows * width),
        x(rows * width),
        q(rows * qk_width),
        k(rows * qk_width),
        v(rows * width),
        att(rows * width),
        branch(rows * width),
        f(rows * ff_width) {}

  // stream = block(stream); attend() fills att from q, k, v.
  template <class Attend>
  void block(const BlockWeights<const T>& w, std::int64_t rows, Attend&& attend) {
    const auto h = stream.matrix(rows, width);
    const auto y = x.matrix(rows, width);
    const auto end = branch.matrix(rows, width);
    const auto hidden = f.matrix(rows, ff_width);
    const auto linear = [](Matrix<const T> in, const LinearWeights<const T>& p, Matrix<T> out) {
      ops::linear_forward(ops::Linear<T>{in, p.weight, p.bias, out});
    };
    ops::layer_norm(ops::LayerNorm<T>{h, w.norm1.gain, w.norm1.bias, y, {}, {}});
    linear(y, w.q, q.matrix(rows, qk_width));
    linear(y, w.k, k.matrix(rows, qk_width));
    linear(y, w.v, v.matrix(rows, width));
    attend();
    linear(att.matrix(rows, width), w.out, end);
    ops::residual(ops::Residual<T>{h, end, h, {}});
    ops::layer_norm(ops::LayerNorm<T>{h, w.norm2.gain, w.norm2.bias, y, {}, {}});
    linear(y, w.ff1, hidden);
    const Vector<T> all{f.data(), rows * ff_width};
    ops::activation(ops::Activation<T>{all, all});
    linear(hidden, w.ff2, end);
    ops::residual(ops::Residual<T>{h, end, h, {}});
  }

  // Of the rows from `first` on, as many as `out` has.
  void logits(const ModelWeights<const T>& w, std::int64_t first, Matrix<T> out) {
    const auto h = matrix(stream.data() + first * width, out.rows, width);
    const auto y = x.matrix(out.rows, width);
    ops::layer_norm(ops::LayerNorm<T>{h, w.norm.gain, w.norm.bias, y, {}, {}, T(kFinalNormEps)});
    ops::linear_forward(ops::Linear<T>{y, w.head, {}, out});
  }

  std::int64_t width, qk_width, ff_width;
  Buffer<T> stream, x, q, k, v, att, branch, f;
};

template <class T>
ops::Embedding<T> embed(const ModelWeights<const T>& w, Matrix<T> y) {
  ops::Embedding<T> op;
  op.batch = 1;
  op.length = y.rows;
  op.bytes = w.bytes;
  op.axes = w.axes;
  op.start = w.start;
  op.y = y;
  return op;
}

}  // namespace

std::int64_t full_pass_bytes(const ModelConfig& m) {
  const std::int64_t row = 5 * m.width + 2 * m.qk() + m.ff() + m.heads;  // Rows, and lse
  const std::int64_t elements = m.context * row + std::min(m.context, kLogitRows) * 256;
  return elements * static_cast<std::int64_t>(sizeof(float));
}

template <class T>
struct FullPass<T>::State {
  explicit State(const ModelConfig& config)
      : model(config),
        layout(config),
        plans(config),
        rows(config, config.context),
        lse(config.context * config.heads),
        chunk(std::min(config.context, kLogitRows) * 256) {}

  // Runs all blocks over the tokens; rows.stream then holds what the output layer reads.
  ModelWeights<const T> run(Vector<const T> weights, const std::uint8_t* tokens,
                            std::int64_t length);

  ModelConfig model;
  ParameterLayout layout;
  LayerPlans plans;
  Rows<T> rows;
  Buffer<T> lse;
  Buffer<T> chunk;  // logits of up to kLogitRows positions
};

template <class T>
FullPass<T>::FullPass(const ModelConfig& model) : state_(std::make_unique<State>(model)) {}

template <class T>
FullPass<T>::~FullPass() = default;

template <class T>
ModelWeights<const T> FullPass<T>::State::run(Vector<const T> flat, const std::uint8_t* tokens,
                                              std::int64_t length) {
  if (length < 1 || length > model.context)
    throw invalid_argument("inference: ", length, " symbols, want 1 to ", model.context);
  const auto w = view_weights(model, layout, flat);
  auto embedding = embed<T>(w, rows.stream.matrix(length, model.width));
  embedding.tokens = tokens;
  ops::embedding(embedding);

  const std::int64_t H = model.heads;
  const auto heads = [&](const Buffer<T>& b, std::int64_t width) {
    return Heads<T>{b.data(), 1, length, H, width / H, width};
  };
  for (std::int64_t r = 0; r < model.layers; ++r)
    rows.block(w.blocks[static_cast<std::size_t>(r)], length, [&] {
      ops::attention(ops::Attention<T>{&plans.of_layer(r),
                                       heads(rows.q, model.qk()),
                                       heads(rows.k, model.qk()),
                                       heads(rows.v, model.width),
                                       heads(rows.att, model.width),
                                       {lse.data(), H * length},
                                       score_scale<T>(model)});
    });
  return w;
}

template <class T>
void FullPass<T>::logits(Vector<const T> weights, const std::uint8_t* tokens, std::int64_t length,
                         Matrix<T> out) {
  const auto w = state_->run(weights, tokens, length);
  state_->rows.logits(w, 0, out);
}

template <class T>
void FullPass<T>::nats(Vector<const T> weights, const std::uint8_t* tokens, std::int64_t length,
                       Vector<T> out) {
  const auto w = state_->run(weights, tokens, length);
  for (std::int64_t first = 0; first < length; first += kLogitRows) {
    const std::int64_t rows = std::min(kLogitRows, length - first);
    const auto logits = state_->chunk.matrix(rows, 256);
    state_->rows.logits(w, first, logits);
    ops::cross_entropy(
        ops::CrossEntropy<T>{logits, tokens + first, {out.data + first, rows}, {}, T(1)});
  }
}

template <class T>
struct Decoder<T>::State {
  State(const ModelConfig& config, Vector<const T> flat)
      : model(config),
        layout(config),
        plans(config),
        weights(view_weights(model, layout, flat)),
        rows(config, 1),
        out(256) {
    for (std::int64_t r = 0; r < model.layers; ++r)
      caches.emplace_back(plans.of_layer(r), model.heads, model.qk() / model.heads,
                          model.width / model.heads);
  }

  ModelConfig model;
  ParameterLayout layout;
  LayerPlans plans;
  ModelWeights<const T> weights;
  Rows<T> rows;
  std::vector<ops::KvCache<T>> caches;
  Buffer<T> out;
  std::int64_t position = 0;
};

template <class T>
Decoder<T>::Decoder(const ModelConfig& model, Vector<const T> weights)
    : state_(std::make_unique<State>(model, weights)) {}

template <class T>
Decoder<T>::~Decoder() = default;

template <class T>
std::int64_t Decoder<T>::position() const {
  return state_->position;
}

template <class T>
void Decoder<T>::restart() {
  // Slots are written before any query of the new sequence reads them, so nothing is cleared.
  state_->position = 0;
}

template <class T>
std::int64_t Decoder<T>::cache_bytes() const {
  std::int64_t sum = 0;
  for (const auto& cache : state_->caches) sum += cache.bytes();
  return sum;
}

template <class T>
Vector<const T> Decoder<T>::step(std::uint8_t previous) {
  State& s = *state_;
  if (s.position >= s.model.context)
    throw invalid_argument("decoder: position ", s.position, ", the context ends at ",
                           s.model.context);
  auto embedding = embed<T>(s.weights, s.rows.stream.matrix(1, s.model.width));
  const std::uint8_t unused = 0;  // the byte at position() itself is not an input
  embedding.tokens = &unused;
  embedding.first = s.position;
  embedding.previous = &previous;
  ops::embedding(embedding);

  for (std::int64_t r = 0; r < s.model.layers; ++r) {
    const auto index = static_cast<std::size_t>(r);
    s.rows.block(s.weights.blocks[index], 1, [&] {
      s.caches[index].store(s.position, s.rows.k.data(), s.rows.v.data());
      ops::decode(ops::Decode<T>{&s.caches[index], s.position, s.rows.q.data(), s.rows.att.data(),
                                 score_scale<T>(s.model)});
    });
  }
  s.rows.logits(s.weights, 0, s.out.matrix(1, 256));
  ++s.position;
  return s.out.vector();
}

template class FullPass<float>;
template class FullPass<double>;
template class Decoder<float>;
template class Decoder<double>;

}  // namespace longstride
