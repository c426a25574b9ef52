#include <algorithm>
#include <type_traits>

#include "longstride/error.h"
#include "ops/attention/attention_backward_float.cuh"
#include "ops/attention/attention_backward_rows.cuh"
#include "ops/attention/attention_backward_shapes.cuh"
#include "ops/attention/attention_sm90.h"
#include "ops/attention/device_plan_cuda.h"

namespace longstride::ops::cuda {

namespace {

// Tiles and padded widths of the kernels that take an operation's widths, and their launch.
template <class A>
struct Kernel {
  BackwardTiles tiles;
  int qk = 0, v = 0;
  void (*launch)(device::Stream, const BackwardArguments<A>&, std::int64_t, bool) = nullptr;
};

template <class A, int kQk, int kV>
Kernel<A> kernel_of() {
  using Kernels = BackwardKernels<kQk, kV>;
  return {{{Kernels::Whole::kKeys, Kernels::Whole::kQueries},
           {Kernels::Other::kKeys, Kernels::Other::kQueries}},
          kQk,
          kV,
          launch_backward<A, kQk, kV>};
}

template <int kWidth, int kTile>
Kernel<float> float_kernel() {
  return {{{kTile, kTile}, {kTile, kTile}}, kWidth, kWidth, launch_backward_float<kWidth, kTile>};
}

template <class A>
Kernel<A> kernel_for(std::int64_t qk, std::int64_t v) {
  if constexpr (std::is_same_v<A, float>) {
    const std::int64_t widest = std::max(qk, v);
    if (widest <= 64) return float_kernel<64, 32>();
    if (widest <= 128) return float_kernel<128, 32>();
    return float_kernel<256, 16>();
  } else {
    if (qk <= 32 && v <= 32) return kernel_of<A, 32, 32>();
    if (qk <= 64 && v <= 64) return kernel_of<A, 64, 64>();
    if (qk <= 64 && v <= 128) return kernel_of<A, 64, 128>();
    if (qk <= 128 && v <= 128) return kernel_of<A, 128, 128>();
    return kernel_of<A, 256, 256>();
  }
}

template <class A>
void check(const AttentionBackward<A>& op) {
  constexpr std::int64_t kWidest = 256;
  if (op.plan == nullptr) throw invalid_argument("attention_backward: there is no plan");
  const PlanTables& tables = op.plan->state().tables;
  const auto& q = op.q;
  if (q.heads != tables.heads || q.length > tables.length)
    throw invalid_argument("attention_backward: heads ", q.heads, " and length ", q.length,
                           ", want the plan's ", tables.heads, " heads and at most its length ",
                           tables.length);
  const auto same = [&](const auto& x, std::int64_t width) {
    return x.batch == q.batch && x.length == q.length && x.heads == q.heads && x.width == width;
  };
  if (!same(op.k, q.width) || !same(op.v, op.v.width) || !same(op.out, op.v.width) ||
      !same(op.dout, op.v.width) || !same(op.dq, q.width) || !same(op.dk, q.width) ||
      !same(op.dv, op.v.width) || op.lse.size != q.batch * q.heads * q.length)
    throw invalid_argument("attention_backward: shapes differ, want those of q (B ", q.batch, " N ",
                           q.length, " H ", q.heads, " width ", q.width, ") and of v (width ",
                           op.v.width, ")");
  if (q.width < 1 || q.width > kWidest || op.v.width < 1 || op.v.width > kWidest)
    throw invalid_argument("attention_backward: widths of a head are ", q.width, " and ",
                           op.v.width, ", want 1 to ", kWidest);
}

template <class A, class T>
bool pieces(const Heads<T>& x) {
  constexpr std::int64_t kPiece = 16 / sizeof(A);
  return x.width % kPiece == 0 && x.row_stride % kPiece == 0 &&
         reinterpret_cast<std::uintptr_t>(x.data) % 16 == 0;
}

// Calls act(line) if there is one and the Hopper kernels take it, and returns whether.
template <class A, class Act>
bool with_hopper_line(const AttentionBackward<A>& op, const Act& act) {
  if constexpr (!std::is_same_v<A, float>) {
    const DevicePlan::State& state = op.plan->state();
    for (std::size_t g = 0; g < state.tables.groups.size(); ++g) {
      const PassGroup& group = state.tables.groups[g];
      const sm90::Line line{&state.tables.parts, &group.heads, state.parts.data(),
                            state.heads[g].data()};
      if (group.stride != 0 || !sm90::takes(op, line)) continue;
      act(line);
      return true;
    }
  }
  return false;
}

// What a call runs, from shapes alone.
template <class A>
struct Backward {
  explicit Backward(const AttentionBackward<A>& op)
      : kernel(kernel_for<A>(op.q.width, op.v.width)) {
    if constexpr (!std::is_same_v<A, float>)
      hopper = with_hopper_line(
          op, [&](const sm90::Line&) { hopper_size = sm90::backward_scratch(op); });
    launches = backward_launches(op.plan->state().tables, op.q.batch, op.q.length, kernel.tiles,
                                 kHeadsAtOnce, hopper);
    scratch = backward_scratch(launches, op.q.batch, op.q.length, op.q.heads, kernel.tiles,
                               kernel.qk, kernel.v);
  }
  // The Hopper kernels have come to their end when the others begin.
  std::int64_t size() const { return std::max(scratch.size, hopper_size); }

  Kernel<A> kernel;
  bool hopper = false;
  std::int64_t hopper_size = 0;
  BackwardLaunches launches;
  BackwardScratch scratch;
};

template <class A>
void run(device::Stream stream, const AttentionBackward<A>& op, const Backward<A>& backward) {
  const auto& [kernel, hopper, hopper_size, launches, scratch] = backward;
  BackwardArguments<A> arguments;
  arguments.q = op.q, arguments.k = op.k, arguments.v = op.v, arguments.dout = op.dout;
  arguments.dq = op.dq, arguments.dk = op.dk, arguments.dv = op.dv;
  auto* const rows = reinterpret_cast<float2*>(op.scratch.data + scratch.rows);
  auto* const done = reinterpret_cast<std::int32_t*>(op.scratch.data + scratch.done);
  arguments.rows = rows;
  arguments.queries = op.scratch.data + scratch.queries;
  arguments.keys = op.scratch.data + scratch.keys;
  arguments.scale = op.scale;
  arguments.whole_pieces = pieces<A>(op.q) && pieces<A>(op.k) && pieces<A>(op.v) &&
                           pieces<A>(op.dout) && pieces<A>(op.dq) && pieces<A>(op.dk) &&
                           pieces<A>(op.dv);
  BackwardWalk& walk = arguments.walk;
  walk.parts = op.plan->state().parts.data();
  walk.length = static_cast<std::int32_t>(op.q.length);
  walk.batch = static_cast<std::int32_t>(op.q.batch);

  constexpr float kLog2E = 1.4426950408889634f;
  describe_rows(stream, op, std::is_same_v<A, float> ? 1.0f : kLog2E,
                pieces<A>(op.out) && pieces<A>(op.dout), rows, done, scratch.counters);
  clear_heads(stream, op, launches.cleared);
  std::int64_t counters = 0;
  for (const BackwardLaunch& launch : launches.list) {
    walk.geometry = launch.geometry;
    walk.tile = launch.whole ? kernel.tiles.whole : kernel.tiles.other;
    walk.heads = static_cast<std::int32_t>(launch.heads.size());
    std::copy(launch.heads.begin(), launch.heads.end(), walk.head);
    arguments.stores = launch.stores;
    arguments.done = done + counters;
    const std::int64_t blocks = launch.blocks(op.q.batch);
    kernel.launch(stream, arguments, blocks, launch.whole);
    if (launch.geometry.splits > 1) add_splits(stream, arguments, blocks, kernel.qk, kernel.v);
    counters += launch.shared_tiles(op.q.batch);
  }
}

}  // namespace

template <class A>
std::int64_t attention_backward_scratch(const AttentionBackward<A>& op) {
  check(op);
  return Backward<A>(op).size();
}

template <class A>
void attention_backward(device::Stream stream, const AttentionBackward<A>& op) {
  check(op);
  if (op.q.batch * op.q.length * op.q.heads == 0) return;
  const Backward<A> backward(op);
  if (op.scratch.size < backward.size() ||
      reinterpret_cast<std::uintptr_t>(op.scratch.data) % 16 != 0)
    throw invalid_argument("attention_backward: scratch of ", op.scratch.size, " floats, want ",
                           backward.size(), " at a multiple of 16 bytes");
  if constexpr (!std::is_same_v<A, float>)
    with_hopper_line(op,
                     [&](const sm90::Line& line) { sm90::attention_backward(stream, op, line); });
  if (!backward.launches.cleared.empty() || !backward.launches.list.empty())
    run(stream, op, backward);
}

template std::int64_t attention_backward_scratch(const AttentionBackward<float>&);
template std::int64_t attention_backward_scratch(const AttentionBackward<bf16>&);
template std::int64_t attention_backward_scratch(const AttentionBackward<fp16>&);
template void attention_backward(device::Stream, const AttentionBackward<float>&);
template void attention_backward(device::Stream, const AttentionBackward<bf16>&);
template void attention_backward(device::Stream, const AttentionBackward<fp16>&);

}  // namespace longstride::ops::cuda
