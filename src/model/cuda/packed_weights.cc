#include "model/cuda/packed_weights.h"

#include <string>

#include "base/integers.h"
#include "longstride/error.h"
#include "model/device_layout.h"

namespace longstride {

namespace {

constexpr std::int64_t kAlign = 64;  // elements

// Places of tensors in the flat array, by name.
class Places {
 public:
  explicit Places(const ParameterLayout& layout) : layout_(layout) {}
  std::int64_t at(const std::string& name) const {
    for (const Parameter& p : layout_.tensors)
      if (p.name == name) return p.offset;
    throw internal_error("packed weights: the model has no ", name);
  }

 private:
  const ParameterLayout& layout_;
};

using Items = std::vector<ops::cuda::FoldItem>;

// Columns [column, column + out) of `map` are the map called `name` behind the norm called `norm`.
struct Part {
  std::int64_t column, out;
  std::string name, norm;
  bool has_bias = true;
};
ops::cuda::FoldItem item_of(const Places& places, const PackedMap& map, const Part& part) {
  ops::cuda::FoldItem item;
  item.in = map.in;
  item.out = part.out;
  item.weight = places.at(part.name + ".weight");
  if (part.has_bias) item.bias = places.at(part.name + ".bias");
  if (!part.norm.empty()) {
    item.gain = places.at(part.norm + ".gain");
    item.norm_bias = places.at(part.norm + ".bias");
  }
  item.packed = map.weight + part.column;
  item.packed_stride = map.out;
  item.packed_bias = map.bias + part.column;
  item.first_of_norm = part.column == 0;
  return item;
}

std::string layer(std::int64_t r) { return "layers." + std::to_string(r) + "."; }

void add_qkv(Items& items, const ModelConfig& model, const Places& places, std::int64_t r,
             const PackedMap& map) {
  const std::int64_t qk = model.qk();
  const std::string norm = layer(r) + "norm1";
  items.push_back(item_of(places, map, {0, qk, layer(r) + "q", norm}));
  items.push_back(item_of(places, map, {qk, qk, layer(r) + "k", norm}));
  items.push_back(item_of(places, map, {2 * qk, model.width, layer(r) + "v", norm}));
}

void add_ff1(Items& items, const Places& places, std::int64_t r, const PackedMap& map) {
  items.push_back(item_of(places, map, {0, map.out, layer(r) + "ff1", layer(r) + "norm2"}));
}

void add_head(Items& items, const Places& places, const PackedMap& map) {
  items.push_back(item_of(places, map, {0, map.out, "head", "norm", false}));
}

}  // namespace

PackedWeights::PackedWeights(const ModelConfig& model, const ParameterLayout& layout) {
  const Places places(layout);
  const std::int64_t d = model.width, qk = model.qk(), ff = model.ff();
  const auto place = [&](std::int64_t in, std::int64_t out) {
    const PackedMap map{in, out, extent, bias_extent};
    extent += ceil_div(in * out, kAlign) * kAlign;
    bias_extent += ceil_div(out, kAlign) * kAlign;
    return map;
  };
  for (std::int64_t r = 0; r < model.layers; ++r) {
    const PackedBlock b{place(d, 2 * qk + d), place(d, d), place(d, ff), place(ff, d)};
    add_qkv(items, model, places, r, b.qkv);
    items.push_back(item_of(places, b.out, {0, d, layer(r) + "out", ""}));
    add_ff1(items, places, r, b.ff1);
    items.push_back(item_of(places, b.ff2, {0, d, layer(r) + "ff2", ""}));
    blocks.push_back(b);
  }
  head = place(d, 256);
  add_head(items, places, head);
  embedding_extent = places.at("layers.0.norm1.gain");
}

PackedGradients::PackedGradients(const ModelConfig& model, const ParameterLayout& layout)
    : aside(side_by_side(model)), model_(model), layout_(layout) {
  const Places places(layout);
  const std::int64_t d = model.width;
  const auto at = [&](std::int64_t in, std::int64_t out, const std::string& name) {
    return PackedMap{in, out, places.at(name + ".weight"), places.at(name + ".bias")};
  };
  for (std::int64_t r = 0; r < model.layers; ++r) {
    const std::int64_t qkv = places.at(layer(r) + "q.weight");
    blocks.push_back({{d, 2 * model.qk() + d, qkv, qkv + side_by_side_weights(model)},
                      at(d, d, layer(r) + "out"),
                      at(d, model.ff(), layer(r) + "ff1"),
                      at(model.ff(), d, layer(r) + "ff2")});
    add_ff1(in_place, places, r, blocks.back().ff1);
  }
  head = {d, 256, places.at("head.weight"), layout.extent};
  add_head(in_place, places, head);
  after_blocks = places.at("norm.gain");
  block_step = (after_blocks - places.at("layers.0.norm1.gain")) / model.layers;
}

Items PackedGradients::from_copies(std::int64_t first, std::int64_t count) const {
  const Places places(layout_);
  Items items;
  for (std::int64_t i = 0; i < count; ++i) {
    PackedMap map = blocks[static_cast<std::size_t>(first + i)].qkv;
    map.bias = i * aside + map.bias - map.weight;
    map.weight = i * aside;
    add_qkv(items, model_, places, first + i, map);
  }
  return items;
}

}  // namespace longstride
