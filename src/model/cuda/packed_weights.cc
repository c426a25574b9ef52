#include "model/cuda/packed_weights.h"

#include <string>

#include "base/integers.h"
#include "longstride/error.h"

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
  // Columns [column, column + out) of `map` are the map called `name` behind the norm called
  // `norm`.
  const auto fold = [&](const PackedMap& map, std::int64_t column, std::int64_t out,
                        const std::string& name, const std::string& norm, bool has_bias = true) {
    ops::cuda::FoldItem item;
    item.in = map.in;
    item.out = out;
    item.weight = places.at(name + ".weight");
    if (has_bias) item.bias = places.at(name + ".bias");
    if (!norm.empty()) {
      item.gain = places.at(norm + ".gain");
      item.norm_bias = places.at(norm + ".bias");
    }
    item.packed = map.weight + column;
    item.packed_stride = map.out;
    item.packed_bias = map.bias + column;
    item.first_of_norm = column == 0;
    items.push_back(item);
  };
  for (std::int64_t r = 0; r < model.layers; ++r) {
    const std::string layer = "layers." + std::to_string(r) + ".";
    const PackedBlock b{place(d, 2 * qk + d), place(d, d), place(d, ff), place(ff, d)};
    fold(b.qkv, 0, qk, layer + "q", layer + "norm1");
    fold(b.qkv, qk, qk, layer + "k", layer + "norm1");
    fold(b.qkv, 2 * qk, d, layer + "v", layer + "norm1");
    fold(b.out, 0, d, layer + "out", "");
    fold(b.ff1, 0, ff, layer + "ff1", layer + "norm2");
    fold(b.ff2, 0, d, layer + "ff2", "");
    blocks.push_back(b);
  }
  head = place(d, 256);
  fold(head, 0, 256, "head", "norm", false);
  embedding_extent = places.at("layers.0.norm1.gain");
}

}  // namespace longstride
