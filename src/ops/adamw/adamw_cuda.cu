// The end of a training step. The norm: each block sums the squares of a fixed piece in double, and
// the block that decides adds the pieces in order. The decision is a few numbers in device memory,
// which the update reads; where there is none to make it reads nothing else.
//
// Bytes an element: 4 for the norm; update 28, with a moving average 36 (0.13 and 1.14 ms for 95M
// at 3 TB/s). Work: 40 instructions an element, of them a root and a division. Bound: memory; a
// thread has kPacks loads of 16 bytes of each array under way.
#include <algorithm>
#include <cstdint>

#include "base/integers.h"
#include "device/number.cuh"
#include "device/upload.h"
#include "ops/adamw/adamw_cuda.h"
#include "ops/shape.h"

namespace longstride::ops::cuda {

namespace {

using device::load, device::Pack, device::store;

constexpr int kThreads = 256, kPacks = 2;
constexpr int kDecideThreads = 1024;
constexpr std::int64_t kPiece = 16384;  // elements of a partial sum of the norm
constexpr std::int64_t kGroup = 16;     // elements that share their weight decay
constexpr int kGroupsPerWord = 32;

struct Decision {
  float grad_scale, shrink, rate, root;  // shrink: lr * decay; rate, root: bias corrections inside
  bool update;
};

struct Constants {
  float beta1, rest1, beta2, rest2, eps, rest_ema;  // rest: 1 - beta
};

// The sum of x over the threads of the block, in all of them.
template <int kCount>
__device__ double block_sum(double x) {
  __shared__ double sums[kCount];
  sums[threadIdx.x] = x;
  for (int half = kCount / 2; half > 0; half /= 2) {
    __syncthreads();
    if (threadIdx.x < half) sums[threadIdx.x] += sums[threadIdx.x + half];
  }
  __syncthreads();
  return sums[0];
}

__global__ void __launch_bounds__(kThreads)
    squares_kernel(const float* grad, std::int64_t size, double* partial) {
  const std::int64_t end = min(size, (std::int64_t{blockIdx.x} + 1) * kPiece);
  double sum = 0;
#pragma unroll 8
  for (std::int64_t i = std::int64_t{blockIdx.x} * kPiece + threadIdx.x * 4; i < end;
       i += kThreads * 4) {
    const Pack<float, 4> g = load<4>(grad + i);
#pragma unroll
    for (int k = 0; k < 4; ++k) {
      const auto x = static_cast<double>(g.at[k]);
      sum = fma(x, x, sum);
    }
  }
  sum = block_sum<kThreads>(sum);
  if (threadIdx.x == 0) partial[blockIdx.x] = sum;
}

// What becomes of the step, and of the counts; see adamw_cuda.h.
__device__ Decision decide(const UpdateConfig& config, const StepInput& input, double sum,
                           double nats, StepState& state) {
  Decision decision = {0, 0, 0, 0, false};
  if (state.halted != 0) return decision;
  const double scale = config.scales_loss ? state.loss_scale : 1;
  const double norm = sqrt(sum) / scale;
  const bool good = isfinite(nats) && isfinite(norm);
  state.nats = nats;
  state.norm = norm;
  state.was_skipped = good ? 0 : 1;
  if (!good) {
    const bool overflow = config.scales_loss && isfinite(nats) && scale > config.scale_floor;
    if (!overflow &&
        (config.stop_on_nonfinite || state.skipped_in_a_row >= config.most_skipped_in_a_row)) {
      state.halted = 1;
      return decision;
    }
    ++state.skipped;
    ++state.skipped_in_a_row;
    if (config.scales_loss) state.loss_scale = fmin(scale, fmax(scale / 2, config.scale_floor));
    return decision;
  }
  const auto t = static_cast<double>(++state.updates);
  state.skipped_in_a_row = 0;
  if (config.scales_loss) state.loss_scale = scale * config.scale_growth;
  const double clip = config.clip > 0 && norm > config.clip ? config.clip / norm : 1;
  decision.grad_scale = static_cast<float>(clip / scale);
  decision.shrink = static_cast<float>(input.lr * config.decay);
  decision.rate = static_cast<float>(input.lr / (1 - pow(config.beta1, t)));
  decision.root = static_cast<float>(1 / sqrt(1 - pow(config.beta2, t)));
  decision.update = true;
  return decision;
}

__global__ void __launch_bounds__(kDecideThreads)
    decide_kernel(UpdateConfig config, const StepInput* input, const double* partial,
                  std::int64_t partials, const double* nats, StepState* state, Decision* decision) {
  double sum = 0;
  for (std::int64_t p = threadIdx.x; p < partials; p += kDecideThreads) sum += partial[p];
  sum = block_sum<kDecideThreads>(sum);
  if (threadIdx.x == 0) *decision = decide(config, *input, sum, *nats, *state);
}

struct Arrays {
  float *weights, *m, *v, *average;  // average: or null
  const float* grad;
};

template <bool kAverage>
__global__ void __launch_bounds__(kThreads)
    update_kernel(Arrays a, std::int64_t size, const std::uint32_t* decayed, Constants c,
                  const Decision* decided) {
  const Decision d = *decided;
  if (!d.update) return;
  const std::int64_t first = (std::int64_t{blockIdx.x} * kThreads * kPacks + threadIdx.x) * 4;
  Pack<float, 4> w[kPacks], m[kPacks], v[kPacks], g[kPacks], average[kPacks];
  float shrink[kPacks];
#pragma unroll
  for (int k = 0; k < kPacks; ++k) {
    const std::int64_t i = first + k * kThreads * 4;
    if (i >= size) continue;
    g[k] = load<4>(a.grad + i);
    m[k] = load<4>(a.m + i);
    v[k] = load<4>(a.v + i);
    w[k] = load<4>(a.weights + i);
    if (kAverage) average[k] = load<4>(a.average + i);
    const std::int64_t group = i / kGroup;
    shrink[k] = decayed[group / kGroupsPerWord] >> (group % kGroupsPerWord) & 1 ? d.shrink : 0.0f;
  }
#pragma unroll
  for (int k = 0; k < kPacks; ++k) {
    const std::int64_t i = first + k * kThreads * 4;
    if (i >= size) continue;
#pragma unroll
    for (int n = 0; n < 4; ++n) {
      const float grad = d.grad_scale * g[k].at[n];
      m[k].at[n] = fmaf(c.rest1, grad, __fmul_rn(c.beta1, m[k].at[n]));
      v[k].at[n] = fmaf(c.rest2 * grad, grad, __fmul_rn(c.beta2, v[k].at[n]));
      const float step = d.rate * m[k].at[n] / fmaf(sqrtf(v[k].at[n]), d.root, c.eps);
      w[k].at[n] -= fmaf(shrink[k], w[k].at[n], step);
      if (kAverage)
        average[k].at[n] = fmaf(c.rest_ema, w[k].at[n] - average[k].at[n], average[k].at[n]);
    }
    store(a.m + i, m[k]);
    store(a.v + i, v[k]);
    store(a.weights + i, w[k]);
    if (kAverage) store(a.average + i, average[k]);
  }
}

std::int64_t words(std::int64_t extent) { return ceil_div(extent, kGroup * kGroupsPerWord); }
std::int64_t pieces(std::int64_t extent) { return ceil_div(extent, kPiece); }

std::vector<std::uint32_t> decay_bits(std::int64_t extent, const std::vector<DecayRange>& decayed) {
  std::vector<std::uint32_t> bits(static_cast<std::size_t>(words(extent)));
  std::int64_t last = 0;
  for (const DecayRange& range : decayed) {
    if (range.begin < last || range.end < range.begin || range.end > extent ||
        range.begin % kGroup != 0 || range.end % kGroup != 0)
      throw invalid_argument("update: decayed range [", range.begin, ", ", range.end,
                             "), want multiples of ", kGroup, " ascending within [", last, ", ",
                             extent, ")");
    last = range.end;
    for (std::int64_t group = range.begin / kGroup; group < range.end / kGroup; ++group)
      bits[static_cast<std::size_t>(group / kGroupsPerWord)] |= 1u << (group % kGroupsPerWord);
  }
  return bits;
}

void check(std::int64_t extent, const UpdateConfig& config) {
  if (extent < 0 || extent % kGroup != 0)
    throw invalid_argument("update: ", extent, " parameters, want a multiple of ", kGroup);
  for (const double beta : {config.beta1, config.beta2})
    if (!(beta >= 0 && beta < 1))
      throw invalid_argument("update: beta is ", beta, ", want 0 <= beta < 1");
}

template <class T>
void want_array(const char* name, Vector<T> v, std::int64_t extent) {
  want_size("update", name, v, extent);
  if (reinterpret_cast<std::uintptr_t>(v.data) % 16 != 0)
    throw invalid_argument("update: ", name, " is at ", v.data, ", want a multiple of 16 bytes");
}

}  // namespace

struct Update::State {
  State(std::int64_t size, const std::vector<DecayRange>& ranges, const UpdateConfig& how)
      : extent(size),
        config(how),
        decayed(device::uploaded(decay_bits(size, ranges))),
        partial(std::max<std::int64_t>(pieces(size), 1)),
        decision(1) {}
  std::int64_t extent;
  UpdateConfig config;
  device::DeviceBuffer<std::uint32_t> decayed;  // a bit a group
  device::DeviceBuffer<double> partial;
  device::DeviceBuffer<Decision> decision;
};

Update::Update(std::int64_t extent, const std::vector<DecayRange>& decayed,
               const UpdateConfig& config) {
  check(extent, config);
  state_ = new State(extent, decayed, config);
}

Update::~Update() { delete state_; }

std::int64_t Update::bytes(std::int64_t extent) {
  return words(extent) * 4 + pieces(extent) * 8 + static_cast<std::int64_t>(sizeof(Decision));
}

void Update::run(device::Stream stream, Vector<float> weights, Vector<float> m, Vector<float> v,
                 Vector<float> average, Vector<const float> grad, const double* nats,
                 const StepInput* input, StepState* state) const {
  const State& s = *state_;
  want_array("weights", weights, s.extent);
  want_array("m", m, s.extent);
  want_array("v", v, s.extent);
  want_array("grad", grad, s.extent);
  if (!average.empty()) want_array("average", average, s.extent);
  const UpdateConfig& config = s.config;
  const auto rest = [](double x) { return static_cast<float>(1 - x); };
  const Constants constants{static_cast<float>(config.beta1), rest(config.beta1),
                            static_cast<float>(config.beta2), rest(config.beta2),
                            static_cast<float>(config.eps),   rest(config.ema)};
  const std::int64_t partials = pieces(s.extent);
  if (partials > 0)
    squares_kernel<<<static_cast<unsigned>(partials), kThreads, 0, stream>>>(grad.data, s.extent,
                                                                             s.partial.data());
  decide_kernel<<<1, kDecideThreads, 0, stream>>>(config, input, s.partial.data(), partials, nats,
                                                  state, s.decision.data());
  const auto blocks =
      static_cast<unsigned>(ceil_div(s.extent, std::int64_t{kThreads} * kPacks * 4));
  const Arrays arrays{weights.data, m.data, v.data, average.data, grad.data};
  if (blocks > 0) {
    const auto kernel = average.empty() ? update_kernel<false> : update_kernel<true>;
    kernel<<<blocks, kThreads, 0, stream>>>(arrays, s.extent, s.decayed.data(), constants,
                                            s.decision.data());
  }
  device::launched(stream, "update of ", s.extent, " parameters");
}

}  // namespace longstride::ops::cuda
