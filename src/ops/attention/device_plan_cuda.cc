#include "ops/attention/device_plan_cuda.h"

#include "device/upload.h"

namespace longstride::ops::cuda {

DevicePlan::State::State(const AttentionPlan& plan)
    : tables(plan),
      lists(device::uploaded(tables.lists)),
      parts(device::uploaded(tables.parts_at(lists.data()))) {
  for (const PassGroup& group : tables.groups) heads.push_back(device::uploaded(group.heads));
}

DevicePlan::DevicePlan(const AttentionPlan& plan) : state_(std::make_unique<State>(plan)) {}
DevicePlan::~DevicePlan() = default;
DevicePlan::DevicePlan(DevicePlan&&) noexcept = default;

std::int64_t DevicePlan::bytes() const {
  std::int64_t sum = state_->lists.bytes() + state_->parts.bytes();
  for (const auto& heads : state_->heads) sum += heads.bytes();
  return sum;
}

}  // namespace longstride::ops::cuda
