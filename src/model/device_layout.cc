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

// Hands out places, one behind the other.
class DeviceLayout::Places {
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

std::int64_t last_rows(std::int64_t rows) {
  return std::min(rows, up(ceil_div(rows, kLastParts), kTile));
}

std::int64_t side_by_side_weights(const ModelConfig& model) {
  return up(model.width * (2 * model.qk() + model.width), kFlatAlign);
}

std::int64_t side_by_side(const ModelConfig& model) {
  return side_by_side_weights(model) + up(2 * model.qk() + model.width, kFlatAlign);
}

// Of one thing of all rows, in bytes.
struct DeviceLayout::Sizes {
  Sizes(const ModelConfig& model, std::int64_t batch, std::int64_t element)
      : rows(batch * model.context),
        each(kFloat * rows),
        narrow(element * rows * model.width),
        qkv(element * rows * (2 * model.qk() + model.width)),
        inner(element * rows * model.ff()),
        stream(each * model.width),
        lse(each * model.heads) {}
  std::int64_t rows, each, narrow, qkv, inner, stream, lse;
};

DeviceLayout::DeviceLayout(const ModelConfig& model, const ParameterLayout& parameters,
                           std::int64_t batch, const DevicePassPlan& plan, const Wants& wants) {
  const Sizes sizes(model, batch, wants.element);
  Places places;
  weights = places.take(wants.element * wants.packed);
  biases = places.take(kFloat * wants.packed_biases);
  take_scratch(places, model, plan.trains, sizes, wants);
  const bool shared = plan.trains && plan.again.inner > 0;
  const std::int64_t inner = shared ? places.take(std::max(sizes.inner, sizes.qkv)) : wide;
  kept = places.end();
  const std::vector<std::int64_t> ends = take_blocks(places, model, plan, sizes, inner);
  if (plan.trains) {
    const std::vector<std::int64_t> alive = take_inputs(places, model, plan, sizes, ends);
    gradients = first_free({model, parameters}, alive, plan.adds_up ? places.end() : kept);
  }
  const std::int64_t behind = gradients + kFloat * (parameters.extent + kSymbols);
  total = plan.trains ? std::max(places.end(), up(behind, kAlign)) : places.end();
}

void DeviceLayout::take_scratch(Places& places, const ModelConfig& model, bool trains,
                                const Sizes& sizes, const Wants& wants) {
  const std::int64_t rows = sizes.rows, logit_row = kSymbols * (kFloat + wants.element);
  stream_bytes = up(std::max({sizes.stream, logit_row * std::min(rows, kTile),
                              trains ? kFloat * side_by_side(model) : 0}),
                    kAlign);
  stream = places.take(stream_bytes);
  branch = places.take(std::max(sizes.narrow, kFloat * wants.attention));
  const std::int64_t last_active = wants.element * last_rows(rows) * model.ff();
  out = places.take(trains ? std::max(sizes.narrow, last_active) : 0);
  wide = places.take(std::max({sizes.inner, sizes.qkv, kFloat * wants.embedding}));
  rstd = places.take(sizes.each);
  nats = places.take(sizes.each);
  logit_rows = std::min({rows, kMostLogits, stream_bytes / logit_row});
  if (logit_rows < rows && logit_rows > kTile) logit_rows = logit_rows / kTile * kTile;
  logits = stream;
  dlogits = stream + logit_rows * kSymbols * kFloat;
}

// Returns where what each of them keeps ends. inner: where blocks stand that have none of their
// own.
std::vector<std::int64_t> DeviceLayout::take_blocks(Places& places, const ModelConfig& model,
                                                    const DevicePassPlan& plan, const Sizes& sizes,
                                                    std::int64_t inner) {
  const Recompute again = plan.trains ? plan.again : Recompute{};
  const bool whole = plan.trains && again.segment == 0, shared = again.inner > 0;
  const std::int64_t count = !plan.trains ? 1 : whole ? model.layers : again.segment;
  std::vector<std::int64_t> ends;
  for (std::int64_t i = 0; i < count; ++i) {
    // The last block's inner product is needed first in backward: it stands in scratch, of which
    // q, k, v that are made again would need their part.
    const bool last = whole && i == count - 1;
    Block b;
    b.qkv_again = i < again.qkv && !(last && !shared);
    b.shares_inner = i < again.inner || (last && shared);
    b.xhat1 = places.take(sizes.narrow);
    if (!b.qkv_again) b.qkv = places.take(sizes.qkv);
    b.att = places.take(sizes.narrow);
    b.xhat2 = places.take(sizes.narrow);
    const std::int64_t own = b.qkv_again ? std::max(sizes.inner, sizes.qkv) : sizes.inner;
    b.inner = b.shares_inner || last ? inner : places.take(own);
    if (b.qkv_again) b.qkv = b.inner;
    b.active = b.inner == wide ? out : wide;
    b.rstd1 = places.take(sizes.each);
    b.rstd2 = places.take(sizes.each);
    b.lse = places.take(sizes.lse);
    blocks.push_back(b);
    ends.push_back(places.end());
  }
  return ends;
}

// Returns for each block the end of all that is still needed when its gradients are written.
std::vector<std::int64_t> DeviceLayout::take_inputs(Places& places, const ModelConfig& model,
                                                    const DevicePassPlan& plan, const Sizes& sizes,
                                                    const std::vector<std::int64_t>& ends) {
  const std::int64_t segment = plan.again.segment;
  const std::int64_t streams = segment > 0 ? ceil_div(model.layers, segment) - 1 : 0;
  for (std::int64_t s = 0; s < streams; ++s) inputs.push_back(places.take(sizes.stream));
  std::vector<std::int64_t> alive;
  for (std::int64_t r = 0; r < model.layers; ++r) {
    const std::int64_t s = segment > 0 ? r / segment : 0;
    alive.push_back(plan.adds_up   ? places.end()
                    : segment == 0 ? ends[static_cast<std::size_t>(r)]
                    : s > 0        ? inputs[static_cast<std::size_t>(s - 1)] + sizes.stream
                                   : ends.back());
  }
  return alive;
}

}  // namespace longstride
