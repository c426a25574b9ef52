// What a valid config is, and what follows from one.
#include "longstride/config.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <optional>
#include <string_view>

#include "base/integers.h"
#include "longstride/error.h"
#include "longstride/pattern.h"
#include "model/parameters.h"

namespace longstride {

namespace {

constexpr std::int64_t kMaxLayers = 10'000;
constexpr std::int64_t kMaxWidth = std::int64_t{1} << 20;
constexpr std::int64_t kMaxContext = std::int64_t{1} << 31;
constexpr std::int64_t kMaxBatch = std::int64_t{1} << 20;
constexpr std::int64_t kMaxParameters = std::int64_t{1} << 40;
constexpr std::int64_t kMaxCount = std::int64_t{1} << 53;  // steps and symbols: exact in a double
constexpr std::size_t kMaxAxes = 8;

std::int64_t ceil_sqrt(std::int64_t n) {
  auto root = static_cast<std::int64_t>(std::sqrt(static_cast<double>(n)));
  while (root * root < n) ++root;
  while (root > 1 && (root - 1) * (root - 1) >= n) --root;
  return root;
}

// The stride that a part names, if it names one.
struct StrideOf {
  std::optional<std::int64_t> operator()(const Column& p) const { return p.stride; }
  std::optional<std::int64_t> operator()(const Row& p) const { return p.stride; }
  std::optional<std::int64_t> operator()(const Summary& p) const { return p.stride; }
  std::optional<std::int64_t> operator()(const PreviousRow& p) const { return p.stride; }
  std::optional<std::int64_t> operator()(const auto&) const { return std::nullopt; }
};

// The width of the matrix in which a plain sequence is laid out: the first stride that the patterns
// name, else their widest window, else the integer nearest above sqrt(context).
std::int64_t row_width(const ModelConfig& model) {
  std::int64_t window = 0;
  for (const std::string& spec : model.attention)
    for (const HeadPattern& head : parse_pattern(spec).kinds)
      for (const Part& part : head.parts) {
        if (const auto stride = std::visit(StrideOf{}, part)) return *stride;
        if (const auto* local = std::get_if<Local>(&part)) window = std::max(window, local->window);
      }
  return window > 0 ? window : ceil_sqrt(model.context);
}

void in_range(std::string_view key, std::int64_t value, std::int64_t low, std::int64_t high) {
  if (value < low || value > high)
    throw invalid_argument("config: ", key, " is ", value, ", want ", low, " to ", high);
}

// low <= value < high; false for a NaN.
void in_share(std::string_view key, double value, double low, double high) {
  if (!(value >= low && value < high))
    throw invalid_argument("config: ", key, " is ", value, ", want at least ", low, " and below ",
                           high);
}

void not_negative(std::string_view key, double value) {
  if (!(value >= 0 && std::isfinite(value)))
    throw invalid_argument("config: ", key, " is ", value, ", want a finite number, 0 or more");
}

void positive(std::string_view key, double value) {
  if (!(value > 0 && std::isfinite(value)))
    throw invalid_argument("config: ", key, " is ", value, ", want a finite number above 0");
}

void one_of(std::string_view key, const std::string& value,
            std::initializer_list<std::string_view> words) {
  if (std::find(words.begin(), words.end(), value) != words.end()) return;
  std::string list;
  for (const std::string_view word : words) list.append(list.empty() ? "" : " | ").append(word);
  throw invalid_argument("config: ", key, " is '", value, "', want ", list);
}

void validate_widths(const ModelConfig& m) {
  in_range("model.layers", m.layers, 1, kMaxLayers);
  in_range("model.width", m.width, 1, kMaxWidth);
  in_range("model.heads", m.heads, 1, kMaxWidth);
  in_range("model.qk_width", m.qk_width, 0, kMaxWidth);
  in_range("model.ff_width", m.ff_width, 0, 4 * kMaxWidth);
  in_range("model.context", m.context, 1, kMaxContext);
  in_share("model.dropout", m.dropout, 0, 1);
  if (m.width % m.heads != 0)
    throw invalid_argument("config: model.width ", m.width, " is not a multiple of model.heads ",
                           m.heads);
  if (m.qk() % m.heads != 0)
    throw invalid_argument("config: model.qk_width ", m.qk(), " is not a multiple of model.heads ",
                           m.heads);
}

void validate_attention(const ModelConfig& m) {
  if (m.attention.empty())
    throw invalid_argument("config: model.attention is an empty list, want at least one pattern");
  if (m.attention.size() > static_cast<std::size_t>(kMaxLayers))
    throw invalid_argument("config: model.attention has ", m.attention.size(), " patterns, want ",
                           kMaxLayers, " at most");
  for (std::size_t i = 0; i < m.attention.size(); ++i) {
    try {
      parse_pattern(m.attention[i]).heads(m.heads);
    } catch (const Error& e) {
      throw Error(e.fault, text("config: model.attention[", i, "]: ", e.what()));
    }
  }
}

void validate_axes(const ModelConfig& m) {
  if (m.axes.size() > kMaxAxes)
    throw invalid_argument("config: model.axes has ", m.axes.size(), " extents, want ", kMaxAxes,
                           " at most");
  std::int64_t product = 1;  // stays below 2^62: it stops growing once it covers the context
  for (const std::int64_t extent : m.axes) {
    in_range("an extent of model.axes", extent, 1, kMaxContext);
    product = std::min(product * extent, kMaxContext);
  }
  if (!m.axes.empty() && product < m.context)
    throw invalid_argument("config: model.axes hold ", product, " positions, want model.context ",
                           m.context, " at least");
}

void validate_train(const TrainConfig& t) {
  in_range("train.steps", t.steps, 1, kMaxCount);
  in_range("train.batch", t.batch, 1, kMaxBatch);
  in_range("train.micro_batch", t.micro_batch, 0, t.batch);
  if (t.micro_batch != 0 && t.batch % t.micro_batch != 0)
    throw invalid_argument("config: train.batch ", t.batch,
                           " is not a multiple of train.micro_batch ", t.micro_batch);
  positive("train.lr", t.lr);
  in_range("train.warmup", t.warmup, 0, kMaxCount);
  not_negative("train.final_lr", t.final_lr);
  in_share("train.beta1", t.beta1, 0, 1);
  in_share("train.beta2", t.beta2, 0, 1);
  positive("train.eps", t.eps);
  not_negative("train.weight_decay", t.weight_decay);
  not_negative("train.clip", t.clip);
  in_share("train.ema", t.ema, 0, 1);
  if (t.seed > static_cast<std::uint64_t>(std::numeric_limits<std::int64_t>::max()))
    throw invalid_argument("config: train.seed is ", t.seed, ", want below 2^63");
  one_of("train.precision", t.precision, {"auto", "f32", "bf16", "fp16"});
  one_of("train.recompute", t.recompute, {"on", "off", "auto"});
  in_range("train.validate_every", t.validate_every, 0, kMaxCount);
  in_range("train.validate_symbols", t.validate_symbols, 1, kMaxCount);
  in_range("train.checkpoint_every", t.checkpoint_every, 0, kMaxCount);
  in_range("train.keep_checkpoints", t.keep_checkpoints, 1, 1'000'000);
  one_of("train.on_nonfinite", t.on_nonfinite, {"stop", "skip"});
}

}  // namespace

std::vector<std::int64_t> ModelConfig::position_axes() const {
  if (!axes.empty()) return axes;
  const std::int64_t l = std::min(context, row_width(*this));
  return {ceil_div(context, l), l};
}

std::int64_t count_parameters(const ModelConfig& model) { return ParameterLayout(model).count; }

void validate(const Config& config) {
  validate_widths(config.model);
  validate_attention(config.model);
  validate_axes(config.model);
  validate_train(config.train);
  // At most 10^4 layers of 12 * 2^40 or 8 tables of 2^51: no overflow here, but too large.
  if (const std::int64_t count = count_parameters(config.model); count >= kMaxParameters)
    throw invalid_argument("config: the model has ", count, " parameters, want fewer than 2^40");
}

}  // namespace longstride
