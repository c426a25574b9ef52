#include "model/parameters.h"

#include <cmath>

#include "base/integers.h"
#include "base/rng.h"
#include "base/threads.h"

namespace longstride {

namespace {

constexpr std::int64_t kAlign = 16;          // elements: tensors start on 64 bytes in float
constexpr double kVarianceOfInputs = 0.125;  // weights ~ N(0, 0.125 / d_in): facts.md section 2

// Appends tensors to a layout, one after the other.
class Builder {
 public:
  explicit Builder(ParameterLayout& layout) : layout_(layout) {}

  void normal(const std::string& name, std::vector<std::int64_t> shape, double deviation) {
    add(name, std::move(shape), deviation, 0);
  }
  void constant(const std::string& name, std::vector<std::int64_t> shape, double value) {
    add(name, std::move(shape), 0, value);
  }
  void norm(const std::string& name, std::int64_t width) {
    constant(name + ".gain", {width}, 1);
    constant(name + ".bias", {width}, 0);
  }
  void linear(const std::string& name, std::int64_t in, std::int64_t out, double scale = 1) {
    normal(name + ".weight", {in, out},
           scale * std::sqrt(kVarianceOfInputs / static_cast<double>(in)));
    constant(name + ".bias", {out}, 0);
  }

 private:
  void add(const std::string& name, std::vector<std::int64_t> shape, double deviation,
           double constant) {
    Parameter p{name, std::move(shape), layout_.extent, 1, deviation, constant};
    for (const std::int64_t extent : p.shape) p.size *= extent;
    layout_.count += p.size;
    layout_.extent += ceil_div(p.size, kAlign) * kAlign;
    layout_.tensors.push_back(std::move(p));
  }

  ParameterLayout& layout_;
};

}  // namespace

ParameterLayout::ParameterLayout(const ModelConfig& model) {
  Builder add(*this);
  const std::int64_t d = model.width;
  const double byte_deviation = std::sqrt(kVarianceOfInputs / static_cast<double>(d));
  // Branch ends shrink with depth, so that the residual stream keeps its size: 1 / sqrt(2 layers).
  const double depth = 1 / std::sqrt(2.0 * static_cast<double>(model.layers));

  add.normal("bytes", {256, d}, byte_deviation);
  const auto axes = model.position_axes();
  for (std::size_t a = 0; a < axes.size(); ++a)
    add.normal("position." + std::to_string(a), {axes[a], d},
               byte_deviation / std::sqrt(static_cast<double>(axes.size())));
  add.normal("start", {d}, byte_deviation);

  for (std::int64_t r = 0; r < model.layers; ++r) {
    const std::string layer = "layers." + std::to_string(r) + ".";
    add.norm(layer + "norm1", d);
    add.linear(layer + "q", d, model.qk());
    add.linear(layer + "k", d, model.qk());
    add.linear(layer + "v", d, d);
    add.linear(layer + "out", d, d, depth);
    add.norm(layer + "norm2", d);
    add.linear(layer + "ff1", d, model.ff());
    add.linear(layer + "ff2", model.ff(), d, depth);
  }
  add.norm("norm", d);
  add.constant("head.weight", {d, 256}, 0);
}

template <class T>
void initialise(const ParameterLayout& layout, std::uint64_t seed, Vector<T> weights) {
  for (std::size_t t = 0; t < layout.tensors.size(); ++t) {
    const Parameter& p = layout.tensors[t];
    T* out = weights.data + p.offset;
    parallel_ranges(p.size, 4096, [&](std::int64_t begin, std::int64_t end) {
      for (std::int64_t e = begin; e < end; ++e) {
        if (p.deviation == 0) {
          out[e] = static_cast<T>(p.constant);
          continue;
        }
        const auto pair =
            normal2(random4(seed, Stream::init, t, static_cast<std::uint64_t>(e) / 2));
        out[e] = static_cast<T>(p.deviation * pair[static_cast<std::size_t>(e) % 2]);
      }
    });
  }
}

template void initialise(const ParameterLayout&, std::uint64_t, Vector<float>);
template void initialise(const ParameterLayout&, std::uint64_t, Vector<double>);

}  // namespace longstride
