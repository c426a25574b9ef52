#include "model/cuda/inference_cuda.h"

#include <algorithm>
#include <vector>

#include "model/cuda/packed_weights.h"
#include "model/layer_plans.h"
#include "model/weights.h"
#include "ops/attention/decode_cuda.h"
#include "ops/embedding/embedding_step_cuda.h"
#include "ops/linear/few_rows_cuda.h"
#include "ops/residual_norm/residual_norm_cuda.h"

namespace longstride {

namespace {

using device::DeviceBuffer;

static_assert(kMostDecoded == ops::cuda::kFewRows);

constexpr std::int64_t kSymbols = 256;

std::vector<ops::cuda::DecodePlan> decode_plans(const ModelConfig& model) {
  const LayerPlans plans(model);
  std::vector<ops::cuda::DecodePlan> all;
  for (std::int64_t r = 0; r < std::ssize(model.attention); ++r)
    all.emplace_back(plans.of_layer(r));
  return all;
}

std::int64_t most_pieces(const std::vector<ops::cuda::DecodePlan>& plans) {
  std::int64_t most = 1;
  for (const auto& plan : plans) most = std::max(most, plan.pieces());
  return most;
}

std::int64_t widest(const ModelConfig& m) {
  return std::max({2 * m.qk() + m.width, m.ff(), kSymbols});
}

}  // namespace

template <class A>
struct DeviceDecoder<A>::State {
  State(const ModelConfig& config, std::int64_t sequences);

  void load(Vector<const float> flat);
  void step();  // puts one position of all sequences on the stream
  void block(std::int64_t index);
  template <class Y>
  void product(const DeviceBuffer<A>& x, const PackedMap& map, const DeviceBuffer<Y>& y,
               bool activation = false);
  void norm(bool adds_branch, float eps);

  ModelConfig model;
  ParameterLayout layout;
  PackedWeights packed;
  std::vector<ops::cuda::DecodePlan> plans;  // one a layer of the cycle
  std::int64_t most, batch;                  // sequences: at construction, since restart()
  std::int64_t known = 0, done = 0;          // positions: their bytes appended, decoded

  device::StreamOwner owner;
  device::Stream stream = owner.stream;
  DeviceBuffer<float> tables;                       // the flat weights up to the first block
  DeviceBuffer<A> weights;                          // packed
  DeviceBuffer<float> biases;                       // packed
  std::vector<ops::cuda::DeviceKvCache<A>> caches;  // one a layer
  DeviceBuffer<std::uint8_t> tokens;                // [most, context]
  DeviceBuffer<std::int32_t> positions;             // [most]
  DeviceBuffer<float> h, logits;                    // [most, d], [most, 256]
  DeviceBuffer<A> xhat, qkv, att, branch, wide;     // [most, d, 2 qk + d, d, d, ff]
  ops::cuda::FewRowsScratch few_rows;
  ops::cuda::DecodeScratch decode;
  device::PinnedBuffer<float> out;  // [most, 256]
  device::Graph graph;
  std::int64_t captured = 0;  // sequences of the graph
};

template <class A>
DeviceDecoder<A>::State::State(const ModelConfig& config, std::int64_t sequences)
    : model(config),
      layout(config),
      packed(config, layout),
      plans(decode_plans(config)),
      most(sequences),
      batch(sequences),
      tables(packed.embedding_extent),
      weights(packed.extent),
      biases(packed.bias_extent),
      tokens(most * config.context),
      positions(most),
      h(most * config.width),
      logits(most * kSymbols),
      xhat(most * config.width),
      qkv(most * (2 * config.qk() + config.width)),
      att(most * config.width),
      branch(most * config.width),
      wide(most * config.ff()),
      few_rows(std::max(config.width, config.ff()), widest(config)),
      decode(most, config.heads, most_pieces(plans), config.width / config.heads),
      out(most * kSymbols) {
  for (std::int64_t r = 0; r < config.layers; ++r)
    caches.emplace_back(plans[static_cast<std::size_t>(r) % plans.size()], most,
                        config.qk() / config.heads, config.width / config.heads);
}

template <class A>
void DeviceDecoder<A>::State::load(Vector<const float> flat) {
  if (flat.size != layout.extent)
    throw internal_error("decoder: ", flat.size, " weights, want ", layout.extent);
  const DeviceBuffer<float> all(flat.size);
  device::copy(stream, all.data(), flat.data, all.bytes());
  device::copy(stream, tables.data(), all.data(), tables.bytes());
  const ops::cuda::Folds folds(packed.items);
  folds.fold(stream, Vector<const float>(all.vector()), weights.vector(), biases.vector());
  device::synchronize(stream);
}

template <class A>
template <class Y>
void DeviceDecoder<A>::State::product(const DeviceBuffer<A>& x, const PackedMap& map,
                                      const DeviceBuffer<Y>& y, bool activation) {
  const auto p = map.of(Vector<const A>(weights.vector()), Vector<const float>(biases.vector()));
  ops::cuda::few_rows(few_rows, stream,
                      ops::cuda::FewRows<A, Y>{x.matrix(batch, map.in), p.weight, p.bias,
                                               y.matrix(batch, map.out), activation});
}

template <class A>
void DeviceDecoder<A>::State::norm(bool adds_branch, float eps) {
  ops::cuda::ResidualNorm<A> op;
  op.h = h.matrix(batch, model.width);
  if (adds_branch) op.branch = branch.matrix(batch, model.width);
  op.xhat = xhat.matrix(batch, model.width);
  op.eps = eps;
  ops::cuda::residual_norm(stream, op);
}

template <class A>
void DeviceDecoder<A>::State::block(std::int64_t index) {
  const auto r = static_cast<std::size_t>(index);
  const PackedBlock& maps = packed.blocks[r];
  const std::int64_t qk = model.qk(), width = model.width, row = 2 * qk + width;
  constexpr float kEps = 1e-5f;
  norm(index > 0, kEps);
  product(xhat, maps.qkv, qkv);
  ops::cuda::Decode<A> op;
  op.plan = &plans[r % plans.size()];
  op.cache = &caches[r];
  op.positions = positions.data();
  op.q = {qkv.data(), batch, qk, row};
  op.k = {qkv.data() + qk, batch, qk, row};
  op.v = {qkv.data() + 2 * qk, batch, width, row};
  op.out = att.matrix(batch, width);
  op.scale = score_scale<float>(model);
  ops::cuda::decode(decode, stream, op);
  product(att, maps.out, branch);
  norm(true, kEps);
  product(xhat, maps.ff1, wide, true);
  product(wide, maps.ff2, branch);
}

template <class A>
void DeviceDecoder<A>::State::step() {
  // Only the tables, which come first in the flat array, are there to be read.
  const auto w = view_weights(model, layout, Vector<const float>{tables.data(), layout.extent});
  ops::cuda::EmbeddingStep embedding;
  embedding.tokens = tokens.data();
  embedding.stride = model.context;
  embedding.positions = positions.data();
  embedding.bytes = w.bytes;
  embedding.axes = w.axes;
  embedding.start = w.start;
  embedding.y = h.matrix(batch, model.width);
  ops::cuda::embedding_step(stream, embedding);
  for (std::int64_t r = 0; r < model.layers; ++r) block(r);
  norm(true, static_cast<float>(kFinalNormEps));
  product(xhat, packed.head, logits);
  ops::cuda::next_position(stream, {positions.data(), batch});
}

template <class A>
DeviceDecoder<A>::DeviceDecoder(const ModelConfig& model, Vector<const float> weights,
                                std::int64_t sequences) {
  if (sequences < 1 || sequences > kMostDecoded)
    throw invalid_argument("decoder: ", sequences, " sequences, want 1 to ", kMostDecoded);
  state_ = std::make_unique<State>(model, sequences);
  state_->load(weights);
  restart(sequences);
}

template <class A>
DeviceDecoder<A>::~DeviceDecoder() = default;

template <class A>
typename DeviceDecoder<A>::Bytes DeviceDecoder<A>::bytes(const ModelConfig& m) {
  const PackedWeights packed(m, ParameterLayout(m));
  const auto a = static_cast<std::int64_t>(sizeof(A)), f = static_cast<std::int64_t>(sizeof(float));
  const auto plans = decode_plans(m);
  Bytes bytes;
  bytes.fixed = ParameterLayout(m).extent * f + packed.extent * a +
                (packed.bias_extent + packed.embedding_extent) * f +
                ops::cuda::few_rows_partials(std::max(m.width, m.ff()), widest(m)) * f;
  for (std::int64_t r = 0; r < m.layers; ++r)
    bytes.sequence += ops::cuda::DeviceKvCache<A>::bytes(
        plans[static_cast<std::size_t>(r) % plans.size()], 1, m.qk() / m.heads, m.width / m.heads);
  bytes.sequence += m.context + (4 * m.width + 2 * m.qk() + m.ff()) * a +
                    (m.width + kSymbols + 2) * f + most_pieces(plans) * (m.width + 2 * m.heads) * f;
  return bytes;
}

template <class A>
std::int64_t DeviceDecoder<A>::cache_bytes() const {
  std::int64_t sum = 0;
  for (const auto& cache : state_->caches) sum += cache.keys.bytes() + cache.values.bytes();
  return sum;
}

template <class A>
void DeviceDecoder<A>::restart(std::int64_t sequences) {
  State& s = *state_;
  if (sequences < 1 || sequences > s.most)
    throw invalid_argument("decoder: ", sequences, " sequences, want 1 to ", s.most);
  s.batch = sequences;
  s.known = s.done = 0;
  device::zero(s.stream, s.positions.data(), s.positions.bytes());
}

template <class A>
std::int64_t DeviceDecoder<A>::known() const {
  return state_->known;
}

template <class A>
void DeviceDecoder<A>::append(Matrix<const std::uint8_t> bytes) {
  State& s = *state_;
  if (bytes.rows != s.batch || s.known + bytes.cols >= s.model.context)
    throw invalid_argument("decoder: ", bytes.rows, " x ", bytes.cols, " bytes behind ", s.known,
                           ", want ", s.batch, " sequences and fewer than ", s.model.context,
                           " bytes together");
  if (bytes.cols == 0) return;
  device::check(
      cudaMemcpy2DAsync(s.tokens.data() + s.known, static_cast<std::size_t>(s.model.context),
                        bytes.data, static_cast<std::size_t>(bytes.stride),
                        static_cast<std::size_t>(bytes.cols), static_cast<std::size_t>(bytes.rows),
                        cudaMemcpyHostToDevice, s.stream),
      "decoder: bytes");
  s.known += bytes.cols;
}

template <class A>
Matrix<const float> DeviceDecoder<A>::logits() {
  State& s = *state_;
  if (s.captured != s.batch) {
    s.step();  // kernels that were never run are loaded now, not while the stream is captured
    ++s.done;
    s.graph.capture(s.stream, [&] { s.step(); });
    s.captured = s.batch;
  }
  for (; s.done <= s.known; ++s.done) s.graph.launch(s.stream);
  const auto out = s.out.matrix(s.batch, kSymbols);
  device::copy(s.stream, out.data, s.logits.data(),
               s.batch * kSymbols * static_cast<std::int64_t>(sizeof(float)));
  device::synchronize(s.stream);
  return out;
}

template class DeviceDecoder<float>;
template class DeviceDecoder<bf16>;

}  // namespace longstride
