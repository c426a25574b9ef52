// What a DevicePlan holds: the tables of device_plan.h, on the host and on the device.
#pragma once

#include <vector>

#include "device/cuda.h"
#include "ops/attention/attention_cuda.h"
#include "ops/attention/device_plan.h"

namespace longstride::ops::cuda {

struct DevicePlan::State {
  explicit State(const AttentionPlan& plan);

  PlanTables tables;
  device::DeviceBuffer<std::int32_t> lists;
  device::DeviceBuffer<DevicePart> parts;             // [tables.parts], pointers into lists
  std::vector<device::DeviceBuffer<HeadPass>> heads;  // [tables.groups][heads of the group]
};

}  // namespace longstride::ops::cuda
