#include <algorithm>
#include <type_traits>

#include "longstride/error.h"
#include "ops/attention/attention_backward_float.cuh"
#include "ops/attention/attention_backward_rows.cuh"
#include "ops/attention/attention_backward_shapes.cuh"
#include "ops/attention/device_plan_cuda.h"

namespace longstride::ops::cuda {

namespace {

// Tile and padded widths of the kernel that takes an operation's widths, and its launch.
template <class A>
struct Kernel {
  BackwardTile tile;
  int qk = 0, v = 0;
  void (*launch)(device::Stream, const BackwardArguments<A>&, std::int64_t) = nullptr;
};

template <class A, class Shape>
Kernel<A> kernel_of() {
  return {{Shape::kKeys, Shape::kQueries}, Shape::kQk, Shape::kV, launch_backward<A, Shape>};
}

template <class A>
Kernel<A> kernel_for(std::int64_t qk, std::int64_t v) {
  if constexpr (std::is_same_v<A, float>) {
    const std::int64_t widest = std::max(qk, v);
    if (widest <= 64) return {{32, 32}, 64, 64, launch_backward_float<64, 32>};
    if (widest <= 128) return {{32, 32}, 128, 128, launch_backward_float<128, 32>};
    return {{16, 16}, 256, 256, launch_backward_float<256, 16>};
  } else {
    if (qk <= 32 && v <= 32) return kernel_of<A, Backward32>();
    if (qk <= 64 && v <= 64) return kernel_of<A, Backward64>();
    if (qk <= 64 && v <= 128) return kernel_of<A, Backward64x128>();
    if (qk <= 128 && v <= 128) return kernel_of<A, Backward128>();
    return kernel_of<A, Backward256>();
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

template <class A>
BackwardLaunches launches_of(const AttentionBackward<A>& op, const Kernel<A>& kernel) {
  return backward_launches(op.plan->state().tables, op.q.batch, op.q.length, kernel.tile,
                           kHeadsAtOnce);
}

template <class A>
BackwardScratch scratch_of(const AttentionBackward<A>& op, const Kernel<A>& kernel,
                           const BackwardLaunches& launches) {
  return backward_scratch(launches, op.q.batch, op.q.length, op.q.heads, kernel.tile, kernel.qk,
                          kernel.v);
}

}  // namespace

template <class A>
std::int64_t attention_backward_scratch(const AttentionBackward<A>& op) {
  check(op);
  const Kernel<A> kernel = kernel_for<A>(op.q.width, op.v.width);
  return scratch_of(op, kernel, launches_of(op, kernel)).size;
}

template <class A>
void attention_backward(device::Stream stream, const AttentionBackward<A>& op) {
  check(op);
  if (op.q.batch * op.q.length * op.q.heads == 0) return;
  const Kernel<A> kernel = kernel_for<A>(op.q.width, op.v.width);
  const BackwardLaunches launches = launches_of(op, kernel);
  const BackwardScratch scratch = scratch_of(op, kernel, launches);
  if (op.scratch.size < scratch.size || reinterpret_cast<std::uintptr_t>(op.scratch.data) % 16 != 0)
    throw invalid_argument("attention_backward: scratch of ", op.scratch.size, " floats, want ",
                           scratch.size, " at a multiple of 16 bytes");

  BackwardArguments<A> arguments;
  arguments.q = op.q, arguments.k = op.k, arguments.v = op.v, arguments.dout = op.dout;
  arguments.dq = op.dq, arguments.dk = op.dk, arguments.dv = op.dv;
  auto* const rows = reinterpret_cast<float2*>(op.scratch.data + scratch.rows);
  auto* const done = reinterpret_cast<std::int32_t*>(op.scratch.data + scratch.done);
  arguments.rows = rows;
  arguments.queries = op.scratch.data + scratch.queries;
  arguments.keys = op.scratch.data + scratch.keys;
  arguments.walk.parts = op.plan->state().parts.data();
  arguments.scale = op.scale;
  arguments.walk.length = static_cast<std::int32_t>(op.q.length);
  arguments.whole_pieces = pieces<A>(op.q) && pieces<A>(op.k) && pieces<A>(op.v) &&
                           pieces<A>(op.dout) && pieces<A>(op.dq) && pieces<A>(op.dk) &&
                           pieces<A>(op.dv);
  arguments.walk.batch = static_cast<std::int32_t>(op.q.batch);
  arguments.walk.tile = kernel.tile;

  constexpr float kLog2E = 1.4426950408889634f;
  describe_rows(stream, op, std::is_same_v<A, float> ? 1.0f : kLog2E,
                pieces<A>(op.out) && pieces<A>(op.dout), rows, done, scratch.counters);
  clear_heads(stream, op, launches.cleared);
  std::int64_t counters = 0;
  for (const BackwardLaunch& launch : launches.list) {
    arguments.walk.geometry = launch.geometry;
    arguments.stores = launch.stores;
    arguments.done = done + counters;
    arguments.walk.heads = static_cast<std::int32_t>(launch.heads.size());
    std::copy(launch.heads.begin(), launch.heads.end(), arguments.walk.head);
    const std::int64_t blocks = launch.blocks(op.q.batch);
    kernel.launch(stream, arguments, blocks);
    if (launch.geometry.splits > 1) add_splits(stream, arguments, blocks, kernel.qk, kernel.v);
    counters += launch.shared_tiles(op.q.batch);
  }
}

template std::int64_t attention_backward_scratch(const AttentionBackward<float>&);
template std::int64_t attention_backward_scratch(const AttentionBackward<bf16>&);
template std::int64_t attention_backward_scratch(const AttentionBackward<fp16>&);
template void attention_backward(device::Stream, const AttentionBackward<float>&);
template void attention_backward(device::Stream, const AttentionBackward<bf16>&);
template void attention_backward(device::Stream, const AttentionBackward<fp16>&);

}  // namespace longstride::ops::cuda
