#include "model/cuda/training_pass_cuda.h"

#include <algorithm>
#include <type_traits>
#include <vector>

#include "base/integers.h"
#include "device/timed.h"
#include "longstride/error.h"
#include "model/cuda/block_cuda.h"
#include "model/layer_plans.h"
#include "model/weights.h"
#include "ops/cross_entropy/cross_entropy_cuda.h"
#include "ops/embedding/embedding_cuda.h"
#include "ops/residual_norm/residual_norm_cuda.h"

namespace longstride {

namespace {

using device::DeviceBuffer;
using device::Timed;

constexpr std::int64_t kSymbols = 256;
// Logits are taken for so many rows at a time: float32 logits of a million positions are 1 GB.
constexpr std::int64_t kLogitRows = 65536;

std::int64_t logit_rows(const DeviceShape& s) { return std::min(s.rows(), kLogitRows); }

// Sizes in elements of the buffers of a pass that are neither a block's nor packed weights.
struct Ends {
  Ends(const ModelConfig& model, const DeviceShape& s, const DevicePassPlan& plan)
      : segments(plan.trains && plan.segment > 0 ? ceil_div(model.layers, plan.segment) : 0),
        kept(!plan.trains       ? 1
             : plan.segment > 0 ? plan.segment
                                : model.layers),
        stream(s.rows() * s.width),
        dstream(segments > 0 ? stream : 0),
        logits(logit_rows(s) * kSymbols),
        dlogits(plan.trains ? logits : 0) {}
  std::int64_t segments, kept;  // saved streams; instances of DeviceKept
  std::int64_t stream, dstream, logits, dlogits;
};

std::int64_t embedding_scratch(const ModelConfig& model, const DeviceShape& s) {
  return ops::cuda::embedding_backward_scratch(s.batch, s.length, s.width, model.position_axes());
}

template <class A>
std::int64_t most_attention_scratch(const DeviceShape& s,
                                    const std::vector<ops::cuda::DevicePlan>& plans) {
  std::int64_t most = 0;
  for (const auto& plan : plans) most = std::max(most, attention_scratch<A>(s, plan));
  return most;
}

std::vector<ops::cuda::DevicePlan> device_plans(const LayerPlans& plans, std::int64_t cycle) {
  std::vector<ops::cuda::DevicePlan> all;
  for (std::int64_t r = 0; r < cycle; ++r) all.emplace_back(plans.of_layer(r));
  return all;
}

}  // namespace

template <class A>
struct DeviceTrainingPass<A>::State {
  State(const ModelConfig& config, std::int64_t batch, const DevicePassPlan& pass_plan);

  DeviceBlock<A> block(device::Stream stream, std::int64_t index, const DeviceShape& s,
                       const DeviceDropout& dropout, std::int64_t instance) {
    return {stream,
            linear,
            s,
            index,
            plans[static_cast<std::size_t>(index) % plans.size()],
            score_scale<float>(model),
            packed.blocks[static_cast<std::size_t>(index)],
            weights.vector(),
            biases.vector(),
            dropout,
            kept[static_cast<std::size_t>(instance)],
            scratch};
  }
  Matrix<float> h() const { return stream_.matrix(shape.rows(), shape.width); }
  Matrix<float> dh() const {
    return (ends.segments > 0 ? dstream_ : stream_).matrix(shape.rows(), shape.width);
  }
  Matrix<float> saved(std::int64_t segment) const {
    return saved_[static_cast<std::size_t>(segment)].matrix(shape.rows(), shape.width);
  }

  void embed(device::Stream stream, const std::uint8_t* tokens, const DeviceShape& s);
  void final_norm(device::Stream stream, const DeviceShape& s, const DeviceDropout& dropout);
  void forward(device::Stream stream, const DeviceDropout& dropout);
  void output(device::Stream stream, const std::uint8_t* tokens, const DeviceDropout& dropout,
              float scale, const double* loss_scale);
  void backward(device::Stream stream, const std::uint8_t* tokens, const DeviceDropout& dropout);

  ModelConfig model;
  ParameterLayout layout;
  PackedWeights packed;
  DeviceShape shape;
  DevicePassPlan plan;
  Ends ends;
  ops::cuda::LinearContext linear;
  ops::cuda::Folds folds;
  std::vector<ops::cuda::DevicePlan> plans;  // one a layer of the cycle
  std::vector<DeviceKept<A>> kept;
  DeviceScratch<A> scratch;
  DeviceBuffer<A> weights;                  // packed
  DeviceBuffer<float> biases;               // packed
  DeviceBuffer<float> dweights, dbiases;    // packed
  DeviceBuffer<float> stream_, dstream_;    // h, dh [R, d]; dh stands in h where nothing runs again
  std::vector<DeviceBuffer<float>> saved_;  // h in front of each segment
  DeviceBuffer<float> rstd;                 // of the final norm [R]
  DeviceBuffer<float> logits, nats;         // [Z, 256], [R]
  DeviceBuffer<A> dlogits;                  // [Z, 256]
  DeviceBuffer<float> embedding;            // scratch of its backward
  DeviceBuffer<double> partial, sum;        // of nats
  Vector<const float> flat;                 // as begin() was given them
  Vector<float> gradients;
  std::int64_t runs = 0;  // since begin()
};

template <class A>
DeviceTrainingPass<A>::State::State(const ModelConfig& config, std::int64_t batch,
                                    const DevicePassPlan& pass_plan)
    : model(config),
      layout(config),
      packed(config, layout),
      shape(config, batch, config.context),
      plan(pass_plan),
      ends(config, shape, plan),
      folds(packed.items),
      plans(device_plans(LayerPlans(config), std::ssize(config.attention))),
      scratch(shape, ends.segments > 0, plan.trains ? most_attention_scratch<A>(shape, plans) : 0),
      weights(packed.extent),
      biases(packed.bias_extent),
      dweights(plan.trains ? packed.extent : 0),
      dbiases(plan.trains ? packed.bias_extent : 0),
      stream_(ends.stream),
      dstream_(ends.dstream),
      rstd(shape.rows()),
      logits(ends.logits),
      nats(shape.rows()),
      dlogits(ends.dlogits),
      embedding(plan.trains ? embedding_scratch(config, shape) : 0),
      partial(ops::cuda::sum_partials()),
      sum(1) {
  for (std::int64_t i = 0; i < ends.kept; ++i) kept.emplace_back(shape);
  for (std::int64_t i = 0; i < ends.segments; ++i) saved_.emplace_back(ends.stream);
}

template <class A>
void DeviceTrainingPass<A>::State::embed(device::Stream stream, const std::uint8_t* tokens,
                                         const DeviceShape& s) {
  const Timed timed(stream, "embedding");
  const auto w = view_weights(model, layout, flat);
  ops::cuda::Embedding op;
  op.tokens = tokens;
  op.batch = s.batch;
  op.length = s.length;
  op.bytes = w.bytes;
  op.axes = w.axes;
  op.start = w.start;
  op.y = matrix(stream_.data(), s.rows(), s.width);
  ops::cuda::embedding(stream, op);
}

// The last branch joins the stream; its norm, which the logits read, stands in scratch.wide.
template <class A>
void DeviceTrainingPass<A>::State::final_norm(device::Stream stream, const DeviceShape& s,
                                              const DeviceDropout& dropout) {
  ops::cuda::ResidualNorm<A> norm;
  norm.h = matrix(stream_.data(), s.rows(), s.width);
  norm.branch = matrix(scratch.branch.data(), s.rows(), s.width);
  norm.xhat = matrix(scratch.wide.data(), s.rows(), s.width);
  norm.rstd = {rstd.data(), s.rows()};
  norm.dropout = dropout.of(2 * model.layers - 1);
  norm.device_step = dropout.step;
  norm.eps = static_cast<float>(kFinalNormEps);
  ops::cuda::residual_norm(stream, norm);
}

template <class A>
void DeviceTrainingPass<A>::State::forward(device::Stream stream, const DeviceDropout& dropout) {
  for (std::int64_t r = 0; r < model.layers; ++r) {
    const bool begins = plan.segment > 0 && r % plan.segment == 0;
    const Matrix<float> input = begins ? saved(r / plan.segment) : Matrix<float>{};
    const std::int64_t instance = plan.segment > 0 ? r % plan.segment : r;
    block(stream, r, shape, dropout, instance).forward(h(), r == 0, true, input);
  }
}

template <class A>
void DeviceTrainingPass<A>::State::output(device::Stream stream, const std::uint8_t* tokens,
                                          const DeviceDropout& dropout, float scale,
                                          const double* loss_scale) {
  const Timed timed(stream, "output and loss");
  const std::int64_t d = shape.width;
  const auto head =
      packed.head.of(Vector<const A>(weights.vector()), Vector<const float>(biases.vector()));
  const auto dhead = packed.head.of(dweights.vector(), dbiases.vector());
  final_norm(stream, shape, dropout);
  for (std::int64_t begin = 0; begin < shape.rows(); begin += kLogitRows) {
    const std::int64_t rows = std::min(kLogitRows, shape.rows() - begin);
    const auto x = matrix(scratch.wide.data() + begin * d, rows, d);
    const auto dx = matrix(scratch.dx.data() + begin * d, rows, d);
    const auto z = logits.matrix(rows, kSymbols);
    const auto dz = dlogits.matrix(rows, kSymbols);
    ops::cuda::linear(linear, stream, ops::cuda::Linear<A, float>{x, head.weight, head.bias, z});
    ops::cuda::cross_entropy(
        stream, ops::cuda::CrossEntropy<A>{
                    z, tokens + begin, {nats.data() + begin, rows}, dz, scale, loss_scale});
    ops::cuda::linear_weight_gradient(
        linear, stream,
        ops::cuda::LinearWeightGradient<A>{x, dz, dhead.weight, dhead.bias, runs > 0 || begin > 0});
    ops::cuda::linear_input_gradient(linear, stream,
                                     ops::cuda::LinearInputGradient<A>{dz, head.weight, dx});
  }
  ops::cuda::sum(stream, nats.vector(), partial.data(), sum.data(), runs > 0);
  ops::cuda::ResidualNormBackward<A> norm;
  norm.dxhat = matrix(scratch.dx.data(), shape.rows(), d);
  norm.xhat = matrix(scratch.wide.data(), shape.rows(), d);
  norm.rstd = rstd.vector();
  norm.dh = dh();
  norm.add = false;
  norm.dbranch = matrix(scratch.branch_gradient(), shape.rows(), d);
  norm.dropout = dropout.of(2 * model.layers - 1);
  norm.device_step = dropout.step;
  ops::cuda::residual_norm_backward(stream, norm);
}

template <class A>
void DeviceTrainingPass<A>::State::backward(device::Stream stream, const std::uint8_t* tokens,
                                            const DeviceDropout& dropout) {
  const std::int64_t step = plan.segment > 0 ? plan.segment : model.layers;
  for (std::int64_t begin = (model.layers - 1) / step * step; begin >= 0; begin -= step) {
    const std::int64_t end = std::min(begin + step, model.layers);
    if (end < model.layers) {
      const Matrix<float> input = saved(begin / step);
      device::copy(stream, h().data, input.data, stream_.bytes());
      for (std::int64_t r = begin; r < end; ++r)
        block(stream, r, shape, dropout, r - begin).forward(h(), r == begin, r + 1 < end, {});
    }
    for (std::int64_t r = end - 1; r >= begin; --r)
      block(stream, r, shape, dropout, r - begin)
          .backward(dh(), dweights.vector(), dbiases.vector(), runs > 0);
  }
  const Timed timed(stream, "embedding backward");
  const auto g = view_weights(model, layout, gradients);
  ops::cuda::EmbeddingBackward op;
  op.tokens = tokens;
  op.batch = shape.batch;
  op.length = shape.length;
  op.dy = dh();
  op.dbytes = g.bytes;
  op.daxes = g.axes;
  op.dstart = g.start;
  op.scratch = embedding.vector();
  ops::cuda::embedding_backward(stream, op);
}

template <class A>
DeviceTrainingPass<A>::DeviceTrainingPass(const ModelConfig& model, std::int64_t batch,
                                          const DevicePassPlan& plan)
    : state_(std::make_unique<State>(model, batch, plan)) {}

template <class A>
DeviceTrainingPass<A>::~DeviceTrainingPass() = default;

template <class A>
void DeviceTrainingPass<A>::begin(device::Stream stream, Vector<const float> weights,
                                  Vector<float> gradients) {
  State& s = *state_;
  s.flat = weights;
  s.gradients = gradients;
  s.runs = 0;
  const Timed timed(stream, "fold");
  s.folds.fold(stream, weights, s.weights.vector(), s.biases.vector());
  if (!gradients.empty())
    device::zero(stream, gradients.data,
                 s.packed.embedding_extent * static_cast<std::int64_t>(sizeof(float)));
}

template <class A>
void DeviceTrainingPass<A>::run(device::Stream stream, const std::uint8_t* tokens,
                                const DevicePassKey& key, float scale, const double* loss_scale) {
  State& s = *state_;
  if (!s.plan.trains || s.gradients.empty())
    throw internal_error("training pass: run() of one that only scores");
  const DeviceDropout dropout{s.model.dropout, key.seed, key.step,
                              key.first_sequence * s.shape.length};
  s.embed(stream, tokens, s.shape);
  s.forward(stream, dropout);
  s.output(stream, tokens, dropout, scale, loss_scale);
  s.backward(stream, tokens, dropout);
  ++s.runs;
}

template <class A>
void DeviceTrainingPass<A>::end(device::Stream stream, Vector<const float> weights,
                                Vector<float> gradients) {
  State& s = *state_;
  const Timed timed(stream, "unfold");
  s.folds.unfold(stream, weights, s.dweights.vector(), s.dbiases.vector(), gradients);
}

template <class A>
const double* DeviceTrainingPass<A>::nats() const {
  return state_->sum.data();
}

template <class A>
void DeviceTrainingPass<A>::score(device::Stream stream, const std::uint8_t* tokens,
                                  std::int64_t sequences, std::int64_t length, Vector<float> nats,
                                  Matrix<float> logits) {
  State& s = *state_;
  if (sequences < 1 || sequences > s.shape.batch || length < 1 || length > s.shape.length)
    throw invalid_argument("inference: ", sequences, " sequences of ", length,
                           " symbols, want at most ", s.shape.batch, " of ", s.shape.length);
  const DeviceShape shape(s.model, sequences, length);
  const DeviceDropout none;
  s.embed(stream, tokens, shape);
  const auto h = matrix(s.stream_.data(), shape.rows(), shape.width);
  for (std::int64_t r = 0; r < s.model.layers; ++r)
    s.block(stream, r, shape, none, 0).forward(h, r == 0, true, {});
  s.final_norm(stream, shape, none);
  const auto head =
      s.packed.head.of(Vector<const A>(s.weights.vector()), Vector<const float>(s.biases.vector()));
  for (std::int64_t begin = 0; begin < shape.rows(); begin += kLogitRows) {
    const std::int64_t rows = std::min(kLogitRows, shape.rows() - begin);
    const auto x = matrix(s.scratch.wide.data() + begin * shape.width, rows, shape.width);
    const auto z = logits.empty() ? s.logits.matrix(rows, kSymbols)
                                  : matrix(logits.row(begin), rows, kSymbols);
    ops::cuda::linear(s.linear, stream, ops::cuda::Linear<A, float>{x, head.weight, head.bias, z});
    if (!nats.empty())
      ops::cuda::cross_entropy(
          stream, ops::cuda::CrossEntropy<A>{z, tokens + begin, {nats.data + begin, rows}, {}});
  }
}

template <class A>
DevicePassBytes device_pass_bytes(const ModelConfig& model, std::int64_t batch,
                                  const DevicePassPlan& plan) {
  const DeviceShape s(model, batch, model.context);
  const Ends ends(model, s, plan);
  const PackedWeights packed(model, ParameterLayout(model));
  const auto f = static_cast<std::int64_t>(sizeof(float)), a = static_cast<std::int64_t>(sizeof(A));
  std::int64_t attention = 0;
  if (plan.trains)
    attention =
        most_attention_scratch<A>(s, device_plans(LayerPlans(model), std::ssize(model.attention)));
  const std::int64_t gradients = plan.trains ? f * (packed.extent + packed.bias_extent) : 0;
  return {ends.kept * DeviceKept<A>::bytes(s) + ends.segments * ends.stream * f,
          DeviceScratch<A>::bytes(s, ends.segments > 0, attention) + a * packed.extent +
              f * packed.bias_extent + gradients + f * (ends.stream + ends.dstream) +
              f * (2 * s.rows() + ends.logits) + a * ends.dlogits +
              (plan.trains ? f * embedding_scratch(model, s) : 0)};
}

template class DeviceTrainingPass<float>;
template class DeviceTrainingPass<bf16>;
template class DeviceTrainingPass<fp16>;
template DevicePassBytes device_pass_bytes<float>(const ModelConfig&, std::int64_t,
                                                  const DevicePassPlan&);
template DevicePassBytes device_pass_bytes<bf16>(const ModelConfig&, std::int64_t,
                                                 const DevicePassPlan&);
template DevicePassBytes device_pass_bytes<fp16>(const ModelConfig&, std::int64_t,
                                                 const DevicePassPlan&);

}  // namespace longstride
