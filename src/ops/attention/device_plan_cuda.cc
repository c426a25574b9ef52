#include "ops/attention/device_plan_cuda.h"

namespace longstride::ops::cuda {

namespace {

template <class T>
device::DeviceBuffer<T> uploaded(const std::vector<T>& values) {
  device::DeviceBuffer<T> buffer(static_cast<std::int64_t>(values.size()));
  if (!values.empty())
    device::check(
        cudaMemcpy(buffer.data(), values.data(), values.size() * sizeof(T), cudaMemcpyHostToDevice),
        "attention plan");
  return buffer;
}

}  // namespace

DevicePlan::State::State(const AttentionPlan& plan)
    : tables(plan), lists(uploaded(tables.lists)), parts(uploaded(tables.parts_at(lists.data()))) {
  for (const PassGroup& group : tables.groups) heads.push_back(uploaded(group.heads));
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
