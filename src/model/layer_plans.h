// The attention plans of a model: one for each pattern of the layer cycle.
#pragma once

#include <cmath>
#include <cstdint>
#include <vector>

#include "longstride/config.h"
#include "longstride/pattern.h"
#include "pattern/plan.h"

namespace longstride {

class LayerPlans {
 public:
  explicit LayerPlans(const ModelConfig& model) {
    for (const auto& spec : model.attention)
      cycle_.emplace_back(parse_pattern(spec).heads(model.heads), model.context);
  }
  const AttentionPlan& of_layer(std::int64_t layer) const {
    return cycle_[static_cast<std::size_t>(layer) % cycle_.size()];
  }

 private:
  std::vector<AttentionPlan> cycle_;
};

// Scores are scaled by 1 / sqrt(query/key width of one head).
template <class T>
T score_scale(const ModelConfig& model) {
  return T(1) / std::sqrt(static_cast<T>(model.qk() / model.heads));
}

}  // namespace longstride
