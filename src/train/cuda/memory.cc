// The plan of memory for training on the GPU.
#include "train/memory.h"

#include <algorithm>
#include <map>
#include <memory>
#include <tuple>

#include "base/integers.h"
#include "device/device.h"
#include "model/cuda/pass_plan.h"
#include "tensor/bf16.h"
#include "tensor/fp16.h"
#include "train/cuda/device_step.h"

namespace longstride {

namespace {

// For the code of the kernels, which is loaded when it is first called, and the step's graph.
constexpr std::int64_t kReserve = std::int64_t{256} << 20;

// Scratch of attention wants plans on the device: worked out once for each batch.
class AttentionScratch {
 public:
  template <class A>
  std::int64_t of(const ModelConfig& m, std::int64_t batch) {
    const Key key(m.attention, m.context, m.heads, m.width, m.qk(), batch,
                  static_cast<std::int64_t>(sizeof(A)));
    const auto known = floats_.find(key);
    if (known != floats_.end()) return known->second;
    return floats_[key] = device_attention_scratch<A>(m, batch);
  }

 private:
  using N = std::int64_t;
  using Key = std::tuple<std::vector<std::string>, N, N, N, N, N, N>;
  std::map<Key, std::int64_t> floats_;
};

template <class A>
TrainingBytes bytes_in(const Config& config, const Recompute& again, AttentionScratch& attention) {
  const ParameterLayout layout(config.model);
  const std::int64_t micro = config.train.micro_batch;
  const DevicePassBytes pass =
      device_pass_bytes<A>(config.model, layout, micro, pass_plan(config.train, again),
                           attention.of<A>(config.model, micro));
  return {pass.kept, pass.scratch + DeviceStep<A>::scratch_bytes(config, layout)};
}

// Seconds a byte: making q, k and v again costs the least, the inner product of the feed-forward
// half half as much again, and whole blocks, attention included, the most; their segments keep
// neither. Shares of a step are those of enwik8-95m on an H100.
std::vector<StepMemory::Way> ways(const ModelConfig& model) {
  constexpr double kProjections = 0.035, kInner = 0.065, kForward = 0.3;
  constexpr std::int64_t kSteps = 32;
  const std::int64_t layers = model.layers, each = ceil_div(layers, kSteps);
  const auto share = [](std::int64_t part, std::int64_t all) {
    return static_cast<double>(part) / static_cast<double>(all);
  };
  std::vector<StepMemory::Way> all;
  for (std::int64_t n = each; n < layers; n += each)
    all.push_back({{.qkv = n}, kProjections * share(n, layers)});
  for (std::int64_t n = each; n < layers + each; n += each)
    all.push_back({{.qkv = layers, .inner = std::min(n, layers)},
                   kProjections + kInner * share(std::min(n, layers), layers)});
  std::int64_t before = layers;
  for (std::int64_t k = 2; k <= layers; ++k) {
    const std::int64_t s = ceil_div(layers, k);
    if (s == before) continue;
    before = s;
    all.push_back({{.segment = s, .qkv = s, .inner = s},
                   kProjections + kInner * (1 - share(1, s)) + kForward * (1 - share(1, k))});
  }
  return all;
}

}  // namespace

StepMemory cuda_memory() {
  device::require("train");
  const device::DeviceInfo card = device::devices().at(0);
  StepMemory memory;
  memory.device = card.name;
  memory.available = std::max<std::int64_t>(0, card.free - kReserve);
  memory.shared = false;
  memory.symbols_lost = 3000;
  const auto attention = std::make_shared<AttentionScratch>();
  memory.bytes = [attention](const Config& config, const Recompute& again) {
    const std::string& precision = config.train.precision;
    return precision == "f32"    ? bytes_in<float>(config, again, *attention)
           : precision == "bf16" ? bytes_in<bf16>(config, again, *attention)
                                 : bytes_in<fp16>(config, again, *attention);
  };
  memory.ways = ways;
  return memory;
}

}  // namespace longstride
