#include "ops/attention/attention_cuda.h"

#include <algorithm>
#include <cmath>
#include <type_traits>

#include "longstride/error.h"
#include "ops/attention/attention_forward_launch.h"
#include "ops/attention/attention_sm90.h"
#include "ops/attention/attention_sm90_short.h"
#include "ops/attention/device_plan_cuda.h"
#include "ops/shape.h"

namespace longstride::ops::cuda {

namespace {

constexpr std::int64_t kWidest = 256;
constexpr std::int64_t kRowStrideLimit = std::int64_t{1} << 31;  // in bytes it fits 32 bits

template <class A>
void check_heads(const char* name, const Heads<const A>& x, const Heads<const A>& q,
                 std::int64_t width) {
  if (x.batch != q.batch || x.length != q.length || x.heads != q.heads || x.width != width)
    throw invalid_argument("attention: ", name, " is [", x.batch, ", ", x.length, ", ", x.heads,
                           ", ", x.width, "], want [", q.batch, ", ", q.length, ", ", q.heads, ", ",
                           width, "]");
  if (x.row_stride < x.heads * x.width || x.row_stride >= kRowStrideLimit)
    throw invalid_argument("attention: ", name, " has row stride ", x.row_stride, ", want ",
                           x.heads * x.width, " to ", kRowStrideLimit - 1);
  if (x.data == nullptr && x.batch * x.length > 0)
    throw invalid_argument("attention: ", name, " has no data");
}

template <class A>
void check(const Attention<A>& op) {
  const auto& q = op.q;
  if (op.plan == nullptr) throw invalid_argument("attention: no plan");
  const PlanTables& tables = op.plan->state().tables;
  if (q.batch < 0 || q.length < 0 || q.heads != tables.heads || q.length > tables.length)
    throw invalid_argument("attention: q is [", q.batch, ", ", q.length, ", ", q.heads, ", ",
                           q.width, "], want ", tables.heads, " heads and a length of at most ",
                           tables.length);
  for (const std::int64_t width : {q.width, op.v.width})
    if (width < 1 || width > kWidest)
      throw invalid_argument("attention: a head is ", width, " wide, want 1 to ", kWidest);
  if (!std::isfinite(op.scale))
    throw invalid_argument("attention: scale is ", op.scale, ", want a number");
  check_heads<A>("q", q, q, q.width);
  check_heads<A>("k", op.k, q, q.width);
  check_heads<A>("v", op.v, q, op.v.width);
  check_heads<A>("out", op.out, q, op.v.width);
  want_size("attention", "lse", op.lse, q.batch * q.heads * q.length);
}

template <class A>
bool whole_pieces(const Heads<const A>& x) {
  constexpr std::int64_t kPiece = 16 / sizeof(A);
  return x.width % kPiece == 0 && x.row_stride % kPiece == 0 &&
         reinterpret_cast<std::uintptr_t>(x.data) % 16 == 0;
}

template <class A>
void run(device::Stream stream, const ForwardArguments<A>& a, bool long_tiles) {
  const std::int64_t qk = a.q.width, v = a.v.width;
  if constexpr (std::is_same_v<A, float>) {
    const std::int64_t width = std::max(qk, v);
    const auto forward = width <= 32    ? forward_float<32>
                         : width <= 64  ? forward_float<64>
                         : width <= 128 ? forward_float<128>
                                        : forward_float<256>;
    forward(stream, a);
  } else {
    if (qk > 128 || v > 128) return forward<A, 256, 256>(stream, a, long_tiles);
    if (qk > 64) return forward<A, 128, 128>(stream, a, long_tiles);
    if (v > 64) return forward<A, 64, 128>(stream, a, long_tiles);
    if (qk > 32 || v > 32) return forward<A, 64, 64>(stream, a, long_tiles);
    forward<A, 32, 32>(stream, a, long_tiles);
  }
}

}  // namespace

template <class A>
void attention(device::Stream stream, const Attention<A>& op) {
  check(op);
  if (op.q.batch == 0 || op.q.length == 0) return;
  const DevicePlan::State& state = op.plan->state();
  for (std::size_t g = 0; g < state.tables.groups.size(); ++g) {
    const PassGroup& group = state.tables.groups[g];
    // Of a line: a long tile reads keys half as often, a short one has fewer masked pairs at both
    // ends of what its queries see.
    constexpr double kLongKeys = 256;
    const bool long_tiles = group.keys_per_query > kLongKeys;
    if constexpr (!std::is_same_v<A, float>) {
      const sm90::Line line{&state.tables.parts, &group.heads, state.parts.data(),
                            state.heads[g].data()};
      // Narrow heads that see few keys leave wgmma little to do, but where one walk loads all once:
      // local(128) at width 32 takes 0.165 ms here and 0.125 so (B 4, H 16, N 12,288).
      const bool narrow = std::max(op.q.width, op.v.width) <= 32 && group.even && !long_tiles &&
                          !sm90::walks(op, line);
      if (group.stride == 0 && !narrow && sm90::takes(op, line)) {
        sm90::attention(stream, op, line);
        continue;
      }
    }
    ForwardArguments<A> a;
    a.q = op.q, a.k = op.k, a.v = op.v, a.out = op.out;
    a.lse = op.lse.data;
    a.parts = state.parts.data();
    a.passes = state.heads[g].data();
    a.heads = static_cast<std::int32_t>(group.heads.size());
    a.length = static_cast<std::int32_t>(op.q.length);
    a.scale = op.scale;
    a.even = group.even;
    a.whole_pieces = whole_pieces<A>(op.q) && whole_pieces<A>(op.k) && whole_pieces<A>(op.v) &&
                     whole_pieces<A>(op.out);
    if (group.stride > 0) {
      a.stride = group.stride;
      a.lanes = std::min(group.stride, a.length);
    }
    run(stream, a, long_tiles);
  }
}

template void attention(device::Stream, const Attention<float>&);
template void attention(device::Stream, const Attention<bf16>&);
template void attention(device::Stream, const Attention<fp16>&);

}  // namespace longstride::ops::cuda
