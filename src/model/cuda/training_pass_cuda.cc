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

constexpr std::int64_t kSymbols = DeviceLayout::kSymbols;

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

// From layer to layer the same number of elements.
struct PackedExtents {
  explicit PackedExtents(const ModelConfig& model) {
    ModelConfig one = model, two = model;
    one.layers = 1;
    two.layers = 2;
    const PackedWeights a(one, ParameterLayout(one)), b(two, ParameterLayout(two));
    weights = a.extent + (model.layers - 1) * (b.extent - a.extent);
    biases = a.bias_extent + (model.layers - 1) * (b.bias_extent - a.bias_extent);
  }
  std::int64_t weights, biases;
};

template <class A>
DeviceLayout device_layout(const ModelConfig& model, const ParameterLayout& parameters,
                           std::int64_t batch, const DevicePassPlan& plan, std::int64_t attention) {
  const DeviceShape s(model, batch, model.context);
  const PackedExtents packed(model);
  DeviceLayout::Wants wants;
  wants.element = sizeof(A);
  wants.packed = packed.weights;
  wants.packed_biases = packed.biases;
  wants.attention = attention;
  wants.embedding = plan.trains ? embedding_scratch(model, s) : 0;
  return {model, parameters, batch, plan, wants};
}

// Unfolds the gradients of q, k and v of blocks [first, first + count) from copies.
struct Unfolding {
  Unfolding(const PackedGradients& gradients, std::int64_t begin, std::int64_t size)
      : first(begin), count(size), folds(gradients.from_copies(begin, size)) {}
  std::int64_t first, count;
  ops::cuda::Folds folds;
};

}  // namespace

template <class A>
struct DeviceTrainingPass<A>::State {
  State(const ModelConfig& config, std::int64_t batch, const DevicePassPlan& pass_plan);

  template <class T>
  T* at(std::int64_t place) const {
    return reinterpret_cast<T*>(memory.data() + place);
  }
  DeviceKept<A> kept(std::int64_t r) const { return {memory.data(), layout.of(r)}; }
  DeviceNorm<A> last_norm() const {
    return {at<A>(layout.branch), at<float>(layout.rstd), static_cast<float>(kFinalNormEps)};
  }
  DeviceBlock<A> block(device::Stream stream, std::int64_t index, const DeviceShape& s,
                       const DeviceDropout& dropout, const DeviceKept<A>& places) {
    return {stream,
            linear,
            s,
            index,
            index + 1 < model.layers ? s.rows() : last_rows(s.rows()),
            plans[static_cast<std::size_t>(index) % plans.size()],
            score_scale<float>(model),
            packed.blocks[static_cast<std::size_t>(index)],
            weights(),
            biases(),
            dropout,
            places,
            scratch};
  }
  Vector<A> weights() const { return {at<A>(layout.weights), packed.extent}; }
  Vector<float> biases() const { return {at<float>(layout.biases), packed.bias_extent}; }
  Vector<float> gradients() const {
    return {at<float>(layout.gradients), parameters.extent + kSymbols};
  }
  Matrix<float> h(const DeviceShape& s) const {
    return matrix(at<float>(layout.stream), s.rows(), s.width);
  }
  Matrix<float> input(std::int64_t segment) const {
    return matrix(at<float>(layout.inputs[static_cast<std::size_t>(segment)]), shape.rows(),
                  shape.width);
  }

  void embed(device::Stream stream, const std::uint8_t* tokens, const DeviceShape& s);
  void forward_block(device::Stream stream, const DeviceDropout& dropout, std::int64_t r,
                     Matrix<float> stream_before, const DeviceNorm<A>& next);
  void forward(device::Stream stream, const DeviceDropout& dropout);
  void output(device::Stream stream, const std::uint8_t* tokens, const DeviceDropout& dropout,
              float scale, const double* loss_scale);
  void backward(device::Stream stream, const DeviceDropout& dropout);
  void run_again(device::Stream stream, const DeviceDropout& dropout, std::int64_t begin,
                 std::int64_t end);
  void embedding_backward(device::Stream stream, const std::uint8_t* tokens);
  void begin_gradients(device::Stream stream, std::int64_t begin, std::int64_t end);
  void unfold(device::Stream stream);

  ModelConfig model;
  ParameterLayout parameters;
  PackedWeights packed;
  PackedGradients packed_gradients;
  DeviceShape shape;
  DevicePassPlan plan;
  ops::cuda::LinearContext linear;
  ops::cuda::Folds folds, unfolds_in_place;
  std::vector<std::unique_ptr<Unfolding>> unfoldings;
  std::vector<ops::cuda::DevicePlan> plans;  // one a layer of the cycle
  std::int64_t attention;                    // floats of scratch
  DeviceLayout layout;
  DeviceBuffer<char> memory;
  DeviceBuffer<double> partial, sum;  // of nats
  DeviceScratch<A> scratch;
  Vector<const float> flat;    // as begin() was given them
  std::int64_t runs = 0;       // since begin()
  std::int64_t inner_of = -1;  // the block that the shared inner product is of
};

template <class A>
DeviceTrainingPass<A>::State::State(const ModelConfig& config, std::int64_t batch,
                                    const DevicePassPlan& pass_plan)
    : model(config),
      parameters(config),
      packed(config, parameters),
      packed_gradients(config, parameters),
      shape(config, batch, config.context),
      plan(pass_plan),
      folds(packed.items),
      unfolds_in_place(packed_gradients.in_place),
      plans(device_plans(LayerPlans(config), std::ssize(config.attention))),
      attention(plan.trains ? most_attention_scratch<A>(shape, plans) : 0),
      layout(device_layout<A>(config, parameters, batch, plan, attention)),
      memory(layout.total),
      partial(ops::cuda::sum_partials()),
      sum(1),
      scratch{at<A>(layout.branch),
              at<A>(layout.out),
              at<A>(layout.wide),
              {at<float>(layout.branch), attention}} {
  if (!plan.trains) return;
  const std::int64_t room =
      layout.stream_bytes / static_cast<std::int64_t>(sizeof(float)) / packed_gradients.aside;
  for (std::int64_t first = 0; first < model.layers; first += room) {
    const std::int64_t count = std::min(room, model.layers - first);
    unfoldings.push_back(std::make_unique<Unfolding>(packed_gradients, first, count));
  }
}

template <class A>
void DeviceTrainingPass<A>::State::embed(device::Stream stream, const std::uint8_t* tokens,
                                         const DeviceShape& s) {
  const Timed timed(stream, "embedding");
  const auto w = view_weights(model, parameters, flat);
  ops::cuda::Embedding op;
  op.tokens = tokens;
  op.batch = s.batch;
  op.length = s.length;
  op.bytes = w.bytes;
  op.axes = w.axes;
  op.start = w.start;
  op.y = h(s);
  ops::cuda::embedding(stream, op);
}

template <class A>
void DeviceTrainingPass<A>::State::forward_block(device::Stream stream,
                                                 const DeviceDropout& dropout, std::int64_t r,
                                                 Matrix<float> stream_before,
                                                 const DeviceNorm<A>& next) {
  block(stream, r, shape, dropout, kept(r)).forward(stream_before, next);
  if (layout.of(r).shares_inner) inner_of = r;
}

template <class A>
void DeviceTrainingPass<A>::State::forward(device::Stream stream, const DeviceDropout& dropout) {
  const std::int64_t segment = plan.again.segment;
  block(stream, 0, shape, dropout, kept(0)).first_norm(h(shape));
  for (std::int64_t r = 0; r < model.layers; ++r) {
    if (segment > 0 && r % segment == 0 && r / segment < std::ssize(layout.inputs)) {
      const Matrix<float> to = input(r / segment);
      device::copy(stream, to.data, h(shape).data,
                   to.rows * to.cols * static_cast<std::int64_t>(sizeof(float)));
    }
    forward_block(stream, dropout, r, h(shape),
                  r + 1 < model.layers ? kept(r + 1).norm1 : last_norm());
  }
}

// Gradients [begin, end) are about to be written for the first time. What other things left in the
// padding between tensors would count as gradient.
template <class A>
void DeviceTrainingPass<A>::State::begin_gradients(device::Stream stream, std::int64_t begin,
                                                   std::int64_t end) {
  if (runs == 0 && parameters.count != parameters.extent)
    device::zero(stream, gradients().data + begin,
                 (end - begin) * static_cast<std::int64_t>(sizeof(float)));
}

// Logits and their gradient stand in the stream, whose own gradient comes last.
template <class A>
void DeviceTrainingPass<A>::State::output(device::Stream stream, const std::uint8_t* tokens,
                                          const DeviceDropout& dropout, float scale,
                                          const double* loss_scale) {
  const Timed timed(stream, "output and loss");
  const std::int64_t d = shape.width;
  const auto head = packed.head.of(Vector<const A>(weights()), Vector<const float>(biases()));
  const auto dhead = packed_gradients.head.of(gradients(), gradients());
  const Vector<float> nats = {at<float>(layout.nats), shape.rows()};
  const Matrix<A> xhat = matrix(last_norm().xhat, shape.rows(), d);
  const Matrix<A> dxhat = matrix(at<A>(layout.out), shape.rows(), d);
  begin_gradients(stream, packed_gradients.after_blocks, parameters.extent);
  for (std::int64_t begin = 0; begin < shape.rows(); begin += layout.logit_rows) {
    const std::int64_t rows = std::min(layout.logit_rows, shape.rows() - begin);
    const auto x = matrix(xhat.row(begin), rows, d), dx = matrix(dxhat.row(begin), rows, d);
    const auto z = matrix(at<float>(layout.logits), rows, kSymbols);
    const auto dz = matrix(at<A>(layout.dlogits), rows, kSymbols);
    ops::cuda::linear(linear, stream, ops::cuda::Linear<A, float>{x, head.weight, head.bias, z});
    ops::cuda::cross_entropy(
        stream, ops::cuda::CrossEntropy<A>{
                    z, tokens + begin, {nats.data + begin, rows}, dz, scale, loss_scale});
    ops::cuda::linear_weight_gradient(
        linear, stream,
        ops::cuda::LinearWeightGradient<A>{x, dz, dhead.weight, dhead.bias, runs > 0 || begin > 0});
    ops::cuda::linear_input_gradient(linear, stream,
                                     ops::cuda::LinearInputGradient<A>{dz, head.weight, dx});
  }
  ops::cuda::sum(stream, nats, partial.data(), sum.data(), runs > 0);
  ops::cuda::ResidualNormBackward<A> norm;
  norm.dxhat = dxhat;
  norm.xhat = norm.dbranch = xhat;
  norm.rstd = {last_norm().rstd, shape.rows()};
  norm.dh = h(shape);
  norm.add = false;
  norm.dropout = dropout.of(2 * model.layers - 1);
  norm.device_step = dropout.step;
  ops::cuda::residual_norm_backward(stream, norm);
}

// The segment's input is not needed afterwards: the stream is made in its place.
template <class A>
void DeviceTrainingPass<A>::State::run_again(device::Stream stream, const DeviceDropout& dropout,
                                             std::int64_t begin, std::int64_t end) {
  const Matrix<float> stream_again = input(begin / plan.again.segment);
  block(stream, begin, shape, dropout, kept(begin)).first_norm(stream_again);
  for (std::int64_t r = begin; r < end; ++r)
    forward_block(stream, dropout, r, stream_again,
                  r + 1 < end ? kept(r + 1).norm1 : DeviceNorm<A>{});
}

template <class A>
void DeviceTrainingPass<A>::State::backward(device::Stream stream, const DeviceDropout& dropout) {
  const std::int64_t step = plan.again.segment > 0 ? plan.again.segment : model.layers;
  for (std::int64_t begin = (model.layers - 1) / step * step; begin >= 0; begin -= step) {
    const std::int64_t end = std::min(begin + step, model.layers);
    if (end < model.layers) run_again(stream, dropout, begin, end);
    for (std::int64_t r = end - 1; r >= begin; --r) {
      const std::int64_t from = packed.embedding_extent + r * packed_gradients.block_step;
      begin_gradients(stream, from, from + packed_gradients.block_step);
      block(stream, r, shape, dropout, kept(r))
          .backward(h(shape), packed_gradients.blocks[static_cast<std::size_t>(r)], gradients(),
                    runs > 0, layout.of(r).shares_inner && inner_of != r);
      if (layout.of(r).shares_inner) inner_of = -1;
    }
  }
}

template <class A>
void DeviceTrainingPass<A>::State::embedding_backward(device::Stream stream,
                                                      const std::uint8_t* tokens) {
  const Timed timed(stream, "embedding backward");
  if (runs == 0)
    device::zero(stream, gradients().data,
                 packed.embedding_extent * static_cast<std::int64_t>(sizeof(float)));
  const auto g =
      view_weights(model, parameters, Vector<float>{gradients().data, parameters.extent});
  ops::cuda::EmbeddingBackward op;
  op.tokens = tokens;
  op.batch = shape.batch;
  op.length = shape.length;
  op.dy = h(shape);
  op.dbytes = g.bytes;
  op.daxes = g.axes;
  op.dstart = g.start;
  op.scratch = {at<float>(layout.wide), embedding_scratch(model, shape)};
  ops::cuda::embedding_backward(stream, op);
}

// Copies stand in the stream.
template <class A>
void DeviceTrainingPass<A>::State::unfold(device::Stream stream) {
  const Timed timed(stream, "unfold");
  const auto size = static_cast<std::int64_t>(sizeof(float));
  const std::int64_t aside = packed_gradients.aside;
  const Vector<float> all = gradients(),
                      copies = {at<float>(layout.stream), layout.stream_bytes / size};
  unfolds_in_place.unfold(stream, flat, all, all, all);
  for (const auto& unfolding : unfoldings) {
    const auto& [first, count, unfold_copies] = *unfolding;
    float* const from =
        all.data + packed_gradients.blocks[static_cast<std::size_t>(first)].qkv.weight;
    device::copy_rows(stream, copies.data, aside * size, from, packed_gradients.block_step * size,
                      aside * size, count);
    if (parameters.count != parameters.extent)
      for (std::int64_t i = 0; i < count; ++i)
        device::zero(stream, from + i * packed_gradients.block_step, aside * size);
    unfold_copies.unfold(stream, flat, copies, copies, all);
  }
}

template <class A>
DeviceTrainingPass<A>::DeviceTrainingPass(const ModelConfig& model, std::int64_t batch,
                                          const DevicePassPlan& plan)
    : state_(std::make_unique<State>(model, batch, plan)) {}

template <class A>
DeviceTrainingPass<A>::~DeviceTrainingPass() = default;

template <class A>
void DeviceTrainingPass<A>::begin(device::Stream stream, Vector<const float> weights) {
  State& s = *state_;
  s.flat = weights;
  s.runs = 0;
  const Timed timed(stream, "fold");
  s.folds.fold(stream, weights, s.weights(), s.biases());
}

template <class A>
void DeviceTrainingPass<A>::run(device::Stream stream, const std::uint8_t* tokens,
                                const DevicePassKey& key, float scale, const double* loss_scale) {
  State& s = *state_;
  if (!s.plan.trains) throw internal_error("training pass: run() of one that only scores");
  if (s.runs > 0 && !s.plan.adds_up)
    throw internal_error("training pass: a second run() of one that makes a gradient of one");
  const DeviceDropout dropout{s.model.dropout, key.seed, key.step,
                              key.first_sequence * s.shape.length};
  s.embed(stream, tokens, s.shape);
  s.forward(stream, dropout);
  s.output(stream, tokens, dropout, scale, loss_scale);
  s.backward(stream, dropout);
  s.embedding_backward(stream, tokens);
  ++s.runs;
}

template <class A>
void DeviceTrainingPass<A>::end(device::Stream stream) {
  state_->unfold(stream);
}

template <class A>
Vector<float> DeviceTrainingPass<A>::gradients() const {
  return {state_->gradients().data, state_->parameters.extent};
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
  const DeviceKept<A> places = s.kept(0);  // for all blocks: nothing is needed afterwards
  s.embed(stream, tokens, shape);
  s.block(stream, 0, shape, none, places).first_norm(s.h(shape));
  for (std::int64_t r = 0; r < s.model.layers; ++r)
    s.block(stream, r, shape, none, places)
        .forward(s.h(shape), r + 1 < s.model.layers ? places.norm1 : s.last_norm());
  const auto head = s.packed.head.of(Vector<const A>(s.weights()), Vector<const float>(s.biases()));
  for (std::int64_t begin = 0; begin < shape.rows(); begin += s.layout.logit_rows) {
    const std::int64_t rows = std::min(s.layout.logit_rows, shape.rows() - begin);
    const auto x = matrix(s.last_norm().xhat + begin * shape.width, rows, shape.width);
    const auto z = logits.empty() ? matrix(s.template at<float>(s.layout.logits), rows, kSymbols)
                                  : matrix(logits.row(begin), rows, kSymbols);
    ops::cuda::linear(s.linear, stream, ops::cuda::Linear<A, float>{x, head.weight, head.bias, z});
    if (!nats.empty())
      ops::cuda::cross_entropy(
          stream, ops::cuda::CrossEntropy<A>{z, tokens + begin, {nats.data + begin, rows}, {}});
  }
}

template <class A>
std::int64_t device_attention_scratch(const ModelConfig& model, std::int64_t batch) {
  return most_attention_scratch<A>(DeviceShape(model, batch, model.context),
                                   device_plans(LayerPlans(model), std::ssize(model.attention)));
}

template <class A>
DevicePassBytes device_pass_bytes(const ModelConfig& model, const ParameterLayout& parameters,
                                  std::int64_t batch, const DevicePassPlan& plan,
                                  std::int64_t attention) {
  const DeviceLayout layout = device_layout<A>(model, parameters, batch, plan, attention);
  const std::int64_t gradients =
      plan.trains ? parameters.extent * static_cast<std::int64_t>(sizeof(float)) : 0;
  return {layout.total - layout.kept - gradients, layout.kept};
}

template class DeviceTrainingPass<float>;
template class DeviceTrainingPass<bf16>;
template class DeviceTrainingPass<fp16>;
template std::int64_t device_attention_scratch<float>(const ModelConfig&, std::int64_t);
template std::int64_t device_attention_scratch<bf16>(const ModelConfig&, std::int64_t);
template std::int64_t device_attention_scratch<fp16>(const ModelConfig&, std::int64_t);
template DevicePassBytes device_pass_bytes<float>(const ModelConfig&, const ParameterLayout&,
                                                  std::int64_t, const DevicePassPlan&,
                                                  std::int64_t);
template DevicePassBytes device_pass_bytes<bf16>(const ModelConfig&, const ParameterLayout&,
                                                 std::int64_t, const DevicePassPlan&, std::int64_t);
template DevicePassBytes device_pass_bytes<fp16>(const ModelConfig&, const ParameterLayout&,
                                                 std::int64_t, const DevicePassPlan&, std::int64_t);

}  // namespace longstride
