// Where the steps of a run are made: the seam between the loop of training and a device.
//
// The state of the run lives on the host between steps that the loop looks at (checkpoints), and
// where the engine works while it works; push() and pull() move it. Steps may overlap with the
// host: up to depth() of them are under way, and what they say is collected in order.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>

#include "data/dataset.h"
#include "longstride/config.h"
#include "longstride/train.h"
#include "model/parameters.h"
#include "train/train_state.h"

namespace longstride {

class Engine {
 public:
  virtual ~Engine() = default;

  virtual int depth() const = 0;

  // Starts the step behind the last one started.
  virtual void submit() = 0;

  // Waits for the oldest step under way; the counts of the state are then as after it. Throws
  // (numerics) where loss or gradient was not finite and the policy is "stop", or at the 11th such
  // step in a row; steps behind it have then changed nothing, and the state stays as it was.
  virtual StepOutcome collect() = 0;

  // Brings the tensors of the state to the host. With no step under way, as all below.
  virtual void pull() = 0;

  // Mean bits of the first `symbols` of `data` under state.evaluated(). Changes nothing.
  virtual double score(const std::uint8_t* data, std::int64_t symbols) = 0;

  // Flops a second of matrix products in the run's precision, measured.
  virtual double peak_flops() const = 0;
  virtual std::int64_t memory() const = 0;  // bytes in use where the steps are made
};

// All must outlive the engine; `state` as it was begun or loaded.
struct EngineParts {
  const Config& config;  // with nothing left to choose: precision, micro_batch
  const ParameterLayout& layout;
  const MemoryPlan& plan;
  const Dataset& data;
  TrainState& state;
  std::function<void(const std::string&)> warn;
};

using EngineMaker = std::function<std::unique_ptr<Engine>(const EngineParts&)>;
std::unique_ptr<Engine> make_cpu_engine(const EngineParts& parts);
std::unique_ptr<Engine> make_cuda_engine(const EngineParts& parts);  // throws where not built

}  // namespace longstride
