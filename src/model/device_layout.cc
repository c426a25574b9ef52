#include "model/device_layout.h"

#include <algorithm>

#include "base/integers.h"
#include "longstride/error.h"

namespace longstride {

namespace {

constexpr std::int64_t kFloat = 4;
constexpr std::int64_t kFlatAlign = 16;        // elements, of tensors in the flat array
constexpr std::int64_t kLastParts = 4;         // of the rows of the last block
constexpr std::int64_t kTile = 128;            // rows that products like
constexpr std::int64_t kMostLogits = 1 << 16;  // rows: float32 logits of a million would be 1 GB

std::int64_t up(std::int64_t n, std::int64_t to) { return ceil_div(n, to) * to; }

// Hands out places, one behind the other.
class Places {
 public:
  std::int64_t take(std::int64_t bytes) {
    const std::int64_t at = end_;
    end_ = up(end_ + bytes, DeviceLayout::kAlign);
    return at;
  }
  std::int64_t end() const { return end_; }

 private:
  std::int64_t end_ = 0;
};

std::int64_t place_of(const ParameterLayout& parameters, const std::string& name) {
  for (const Parameter& p : parameters.tensors)
    if (p.name == name) return p.offset;
  throw internal_error("device layout: the model has no ", name);
}

// Where the parameters of the blocks begin in the flat array, and how far each is from the next.
struct FlatBlocks {
  FlatBlocks(const ModelConfig& model, const ParameterLayout& parameters)
      : begin(place_of(parameters, "layers.0.norm1.gain")),
        each((place_of(parameters, "norm.gain") - begin) / model.layers) {}
  std::int64_t begin, each;
};

// The first place of the gradients such that those of block r begin behind what is still needed in
// its backward pass, alive[r], and those in front of all blocks behind `least`.
std::int64_t first_free(const FlatBlocks& flat, const std::vector<std::int64_t>& alive,
                        std::int64_t least) {
  std::int64_t place = least;
  for (std::int64_t r = 0; r < std::ssize(alive); ++r)
    place =
        std::max(place, alive[static_cast<std::size_t>(r)] - kFloat * (flat.begin + r * flat.each));
  return up(place, DeviceLayout::kAlign);
}

}  // namespace

std::int64_t last_rows(std::int64_t rows) {
  return std::min(rows, up(ceil_div(rows, kLastParts), kTile));
}

std::int64_t side_by_side_weights(const ModelConfig& model) {
  return up(model.width * (2 * model.qk() + model.width), kFlatAlign);
}

std::int64_t side_by_side(const ModelConfig& model) {
  return side_by_side_weights(model) + up(2 * model.qk() + model.width, kFlatAlign);
}

DeviceLayout::DeviceLayout(const ModelConfig& model, const ParameterLayout& parameters,
                           std::int64_t batch, const DevicePassPlan& plan, const Wants& wants) {
  const std::int64_t rows = batch * model.context, element = wants.element;
  const std::int64_t narrow_rows = element * rows * model.width;
  const std::int64_t qkv_rows = element * rows * (2 * model.qk() + model.width);
  const std::int64_t inner_rows = element * rows * model.ff();
  const std::int64_t stream_rows = kFloat * rows * model.width;
  const std::int64_t logit_row = kSymbols * (kFloat + element);
  const Recompute& again = plan.again;
  const bool segments = plan.trains && again.segment > 0;
  const std::int64_t count = !plan.trains ? 1 : segments ? again.segment : model.layers;
  const bool shared = plan.trains && again.inner > 0;
  const auto take_own = [&](Places& places, bool own_qkv, bool own_inner, Block& b) {
    b.xhat1 = places.take(narrow_rows);
    if (own_qkv) b.qkv = places.take(qkv_rows);
    b.att = places.take(narrow_rows);
    b.xhat2 = places.take(narrow_rows);
    if (own_inner) b.inner = places.take(own_qkv ? inner_rows : std::max(inner_rows, qkv_rows));
    b.rstd1 = places.take(kFloat * rows);
    b.rstd2 = places.take(kFloat * rows);
    b.lse = places.take(kFloat * rows * model.heads);
  };

  Places places;
  weights = places.take(element * wants.packed);
  biases = places.take(kFloat * wants.packed_biases);
  stream_bytes = up(std::max({stream_rows, logit_row * std::min(rows, kTile),
                              plan.trains ? kFloat * side_by_side(model) : 0}),
                    kAlign);
  stream = places.take(stream_bytes);
  branch = places.take(std::max(narrow_rows, kFloat * wants.attention));
  out =
      places.take(plan.trains ? std::max(narrow_rows, element * last_rows(rows) * model.ff()) : 0);
  wide = places.take(std::max({inner_rows, qkv_rows, kFloat * wants.embedding}));
  const std::int64_t inner = shared ? places.take(std::max(inner_rows, qkv_rows)) : 0;
  rstd = places.take(kFloat * rows);
  nats = places.take(kFloat * rows);
  logit_rows = std::min({rows, kMostLogits, stream_bytes / logit_row});
  if (logit_rows < rows && logit_rows > kTile) logit_rows = logit_rows / kTile * kTile;
  logits = stream;
  dlogits = stream + logit_rows * kSymbols * kFloat;
  kept = places.end();

  std::vector<std::int64_t> ends;  // of what blocks keep
  for (std::int64_t i = 0; i < count; ++i) {
    Block b;
    const bool last = plan.trains && !segments && i == count - 1;
    const bool inner_again = plan.trains && i < again.inner;
    // The last block's inner product is needed first: it stands in scratch, of which q, k, v that
    // are made again would need their part.
    b.qkv_again = plan.trains && i < again.qkv && !(last && !shared);
    b.shares_inner = inner_again || (last && shared);
    const bool own_inner = !b.shares_inner && !last;
    take_own(places, !b.qkv_again, own_inner, b);
    if (!own_inner) b.inner = b.shares_inner ? inner : wide;
    if (b.qkv_again) b.qkv = b.inner;
    b.active = b.inner == wide ? out : wide;
    blocks.push_back(b);
    ends.push_back(places.end());
  }
  if (!plan.trains) {
    total = places.end();
    return;
  }
  const std::int64_t streams = segments ? ceil_div(model.layers, again.segment) - 1 : 0;
  for (std::int64_t s = 0; s < streams; ++s) inputs.push_back(places.take(stream_rows));
  std::vector<std::int64_t> alive;
  for (std::int64_t r = 0; r < model.layers; ++r) {
    const std::int64_t s = segments ? r / again.segment : 0;
    alive.push_back(plan.adds_up ? places.end()
                    : !segments  ? ends[static_cast<std::size_t>(r)]
                    : s > 0      ? inputs[static_cast<std::size_t>(s - 1)] + stream_rows
                                 : ends.back());
  }
  gradients = first_free({model, parameters}, alive, plan.adds_up ? places.end() : kept);
  total = std::max(places.end(), up(gradients + kFloat * (parameters.extent + kSymbols), kAlign));
}

}  // namespace longstride
