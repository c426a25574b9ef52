#include "train/flops.h"

#include <map>

#include "model/layer_plans.h"
#include "pattern/work.h"

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

}  // namespace longstride
