#include "train/flops.h"

#include <algorithm>
#include <chrono>
#include <map>

#include "model/layer_plans.h"
#include "ops/linear/linear.h"
#include "pattern/work.h"
#include "tensor/tensor.h"

namespace longstride {

namespace {

// Kept pairs of all heads of a layer.
double layer_pairs(const AttentionPlan& plan) {
  constexpr std::int64_t kBlock = 32;  // of the block counts, which are not used here
  std::vector<double> of_kind;
  for (const HeadPlan& kind : plan.kinds)
    of_kind.push_back(static_cast<double>(count_work(kind, plan.length, kBlock).pairs));
  double pairs = 0;
  for (const auto kind : plan.kind_of_head) pairs += of_kind[static_cast<std::size_t>(kind)];
  return pairs;
}

}  // namespace

double training_flops(const ModelConfig& model, const ParameterLayout& layout) {
  double products = 0;  // weights that a matrix product reads
  for (const auto& t : layout.tensors) {
    const bool table = t.name == "bytes" || t.name.starts_with("position.");
    if (t.shape.size() == 2 && !table) products += static_cast<double>(t.size);
  }
  const LayerPlans plans(model);
  std::map<const AttentionPlan*, double> pairs_of;  // plans repeat in a cycle
  double pairs = 0;
  for (std::int64_t layer = 0; layer < model.layers; ++layer) {
    const AttentionPlan& plan = plans.of_layer(layer);
    if (!pairs_of.contains(&plan)) pairs_of[&plan] = layer_pairs(plan);
    pairs += pairs_of[&plan];
  }
  const auto head_widths = static_cast<double>((model.qk() + model.width) / model.heads);
  return 6 * products + 6 * head_widths * pairs / static_cast<double>(model.context);
}

double measure_peak_flops() {
  constexpr std::int64_t kSize = 1024;
  constexpr int kRuns = 4;  // the first one warms up
  const Buffer<float> x(kSize * kSize), w(kSize * kSize), y(kSize * kSize);
  double best = 0;
  for (int run = 0; run < kRuns; ++run) {
    const auto start = std::chrono::steady_clock::now();
    ops::linear_forward(ops::Linear<float>{.x = x.matrix(kSize, kSize),
                                           .weight = w.matrix(kSize, kSize),
                                           .bias = {},
                                           .y = y.matrix(kSize, kSize)});
    const std::chrono::duration<double> took = std::chrono::steady_clock::now() - start;
    best = std::max(best, 2.0 * kSize * kSize * kSize / took.count());
  }
  return best;
}

}  // namespace longstride
