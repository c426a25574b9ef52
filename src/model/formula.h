// The network written once more, in one piece, in float64, one position after the other, straight
// from the paper and with no operation or plan of ours: what the tests hold the model to. Dropout
// is off.
#pragma once

#include <cmath>
#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "longstride/config.h"
#include "longstride/pattern.h"
#include "model/parameters.h"

namespace longstride::formula {

using Row = std::vector<double>;

class Network {
 public:
  Network(const ModelConfig& model, const std::vector<double>& flat) : model_(model) {
    for (const auto& p : ParameterLayout(model).tensors)
      tensors_[p.name] = Row(flat.begin() + p.offset, flat.begin() + p.offset + p.size);
  }

  // -log p of each of the model's `context` bytes.
  Row nats(const std::uint8_t* tokens) const {
    const std::int64_t N = model_.context;
    std::vector<Row> h;
    for (std::int64_t i = 0; i < N; ++i) h.push_back(input(tokens, i));
    for (std::int64_t r = 0; r < model_.layers; ++r) block(h, r);
    Row out;
    for (std::int64_t i = 0; i < N; ++i) {
      const Row logits = linear(norm(h[static_cast<std::size_t>(i)], "norm", 1e-6), "head", 256);
      double sum = 0;
      for (const double x : logits) sum += std::exp(x);
      out.push_back(std::log(sum) - logits[tokens[i]]);
    }
    return out;
  }

 private:
  const Row& get(const std::string& name) const { return tensors_.at(name); }

  Row input(const std::uint8_t* tokens, std::int64_t i) const {
    if (i == 0) return get("start");
    const auto d = static_cast<std::size_t>(model_.width);
    Row x(d);
    for (std::size_t c = 0; c < d; ++c) x[c] = get("bytes")[tokens[i - 1] * d + c];
    std::int64_t rest = i - 1;
    const auto axes = model_.position_axes();
    for (std::size_t a = axes.size(); a-- > 0; rest /= axes[a])
      for (std::size_t c = 0; c < d; ++c)
        x[c] +=
            get("position." + std::to_string(a))[static_cast<std::size_t>(rest % axes[a]) * d + c];
    return x;
  }

  Row norm(const Row& x, const std::string& name, double eps = 1e-5) const {
    double mean = 0, variance = 0;
    for (const double e : x) mean += e / static_cast<double>(x.size());
    for (const double e : x) variance += (e - mean) * (e - mean) / static_cast<double>(x.size());
    Row y(x.size());
    for (std::size_t c = 0; c < x.size(); ++c)
      y[c] = (x[c] - mean) / std::sqrt(variance + eps) * get(name + ".gain")[c] +
             get(name + ".bias")[c];
    return y;
  }

  Row linear(const Row& x, const std::string& name, std::size_t out) const {
    const bool has_bias = tensors_.count(name + ".bias") > 0;
    Row y(out);
    for (std::size_t n = 0; n < out; ++n) {
      y[n] = has_bias ? get(name + ".bias")[n] : 0;
      for (std::size_t k = 0; k < x.size(); ++k) y[n] += x[k] * get(name + ".weight")[k * out + n];
    }
    return y;
  }

  void block(std::vector<Row>& h, std::int64_t r) const {
    const std::string layer = "layers." + std::to_string(r) + ".";
    const auto d = static_cast<std::size_t>(model_.width),
               H = static_cast<std::size_t>(model_.heads);
    const auto qk = static_cast<std::size_t>(model_.qk()),
               ff = static_cast<std::size_t>(model_.ff());
    const auto& specs = model_.attention;
    const auto heads =
        parse_pattern(specs[static_cast<std::size_t>(r) % specs.size()]).heads(model_.heads);
    std::vector<Row> q, k, v;
    for (const Row& x : h) {
      const Row y = norm(x, layer + "norm1");
      q.push_back(linear(y, layer + "q", qk));
      k.push_back(linear(y, layer + "k", qk));
      v.push_back(linear(y, layer + "v", d));
    }
    const std::size_t dq = qk / H, dv = d / H;
    for (std::size_t i = 0; i < h.size(); ++i) {
      Row att(d);
      for (std::size_t head = 0; head < H; ++head) {
        double sum = 0;
        for (std::size_t j = 0; j < h.size(); ++j) {
          if (!heads[head].attends(static_cast<Position>(i), static_cast<Position>(j))) continue;
          double s = 0;
          for (std::size_t c = 0; c < dq; ++c) s += q[i][head * dq + c] * k[j][head * dq + c];
          const double p = std::exp(s / std::sqrt(static_cast<double>(dq)));
          sum += p;
          for (std::size_t c = 0; c < dv; ++c) att[head * dv + c] += p * v[j][head * dv + c];
        }
        for (std::size_t c = 0; c < dv && sum > 0; ++c) att[head * dv + c] /= sum;
      }
      const Row a = linear(att, layer + "out", d);
      for (std::size_t c = 0; c < d; ++c) h[i][c] += a[c];
    }
    for (Row& x : h) {
      Row f = linear(norm(x, layer + "norm2"), layer + "ff1", ff);
      for (double& e : f) e /= 1 + std::exp(-1.702 * e);
      const Row b = linear(f, layer + "ff2", d);
      for (std::size_t c = 0; c < d; ++c) x[c] += b[c];
    }
  }

  ModelConfig model_;
  std::map<std::string, Row> tensors_;
};

inline Row nats(const ModelConfig& model, const std::vector<double>& flat,
                const std::uint8_t* tokens) {
  return Network(model, flat).nats(tokens);
}

}  // namespace longstride::formula
