// The end of a residual branch. Dropout draws a few kilobytes of words at a time, beside the data.
// Bytes an element: 12 forward, 8 backward (10 and 6 with bf16). Bound: memory without dropout;
// with it the ten rounds of Philox, 75 instructions for as many elements as two vectors of floats
// hold (18 of them multiplications), and memory where these are fast enough.
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "ops/residual/residual_cpu.cc"
#include "hwy/foreach_target.h"
// After foreach_target.h, which includes this file once per instruction set.
#include <algorithm>
#include <cstdint>

#include "base/rng.h"
#include "base/threads.h"
#include "ops/convert/convert.h"
#include "ops/residual/residual.h"
#include "ops/residual/residual_ref.h"
#include "ops/simd.h"

HWY_BEFORE_NAMESPACE();
namespace longstride::ops::HWY_NAMESPACE {

namespace {

constexpr std::int64_t kChunk = 1024;  // words, whole groups of draws on every instruction set

constexpr int kSide = 4;  // vectors side by side, to hide the latency of a round

// words[4 j + w] = word w of the draw `first + j`, at least `count` draws.
#if HWY_TARGET == HWY_SCALAR
void draw(const Dropout& dropout, std::uint64_t first, std::int64_t count, std::uint32_t* words) {
  for (std::int64_t j = 0; j < count; ++j) {
    const auto i = first + static_cast<std::uint64_t>(j);
    const Random4 r = random4(dropout.seed, Stream::dropout, dropout.step, i, dropout.lane);
    std::copy_n(r.data(), 4, words + 4 * j);
  }
}
#else
// random4 of base/rng.h, one draw in each 64-bit lane. A word is the low half of its lane; what
// stands in the high half is left there, because the multiplication does not read it. Of the
// counter only the low word of the index differs between the draws (the caller sees to it), so half
// of the first three rounds is the same for all and done once.
void draw(const Dropout& dropout, std::uint64_t first, std::int64_t count, std::uint32_t* words) {
  const hn::ScalableTag<std::uint64_t> d;
  const hn::Repartition<std::uint32_t, decltype(d)> half;
  using V = hn::Vec<decltype(d)>;
  constexpr std::uint32_t kM0 = 0xD2511F53u, kM1 = 0xCD9E8D57u;
  const auto times = [&](V a, std::uint32_t b) {
    return hn::MulEven(hn::BitCast(half, a), hn::Set(half, b));
  };
  const auto high = [](V p) { return hn::ShiftRight<32>(p); };
  const auto low32 = [](std::uint64_t x) { return static_cast<std::uint32_t>(x); };

  V key0[10], key1[10];
  std::uint32_t k0[10], k1[10];
  for (std::uint32_t round = 0; round < 10; ++round) {
    k0[round] = low32(dropout.seed) + round * 0x9E3779B9u;
    k1[round] = low32(dropout.seed >> 32) + round * 0xBB67AE85u;
    key0[round] = hn::Set(d, k0[round]);
    key1[round] = hn::Set(d, k1[round]);
  }
  const std::uint64_t p1 = std::uint64_t{low32(dropout.step)} * kM1;
  const std::uint32_t c1 = low32(first >> 32) ^ low32(dropout.step >> 32 << 24);
  const std::uint32_t c3 = static_cast<std::uint32_t>(Stream::dropout) << 20 ^ dropout.lane;
  const std::uint64_t p0 = std::uint64_t{low32(p1 >> 32) ^ c1 ^ k0[0]} * kM0;
  const V mix1 = hn::Set(d, c3 ^ k1[0]), mix2 = hn::Set(d, low32(p1) ^ k0[1]);
  const V mix3 = hn::Set(d, low32(p0 >> 32) ^ k1[1]), mix4 = hn::Set(d, low32(p0) ^ k1[2]);

  // A vector is split into its even and its odd lanes in the end: the first half of its draws goes
  // into the even ones, so that both parts are stored in order.
  const auto lanes = static_cast<std::int64_t>(hn::Lanes(d));
  HWY_ALIGN std::uint64_t order[hn::MaxLanes(d)];
  for (std::int64_t l = 0; l < lanes; ++l)
    order[l] = static_cast<std::uint64_t>(l / 2 + l % 2 * (lanes / 2));
  const V places = hn::Load(d, order);
  const V low = hn::Set(d, 0xffffffffu);

  for (std::int64_t j = 0; j < count; j += kSide * lanes) {
    V a0[kSide], a1[kSide], a2[kSide], a3[kSide];
    for (int s = 0; s < kSide; ++s) {
      const auto index = first + static_cast<std::uint64_t>(j + s * lanes);
      const V q0 = times(hn::Add(hn::Set(d, index), places), kM0);
      const V q1 = times(hn::Xor(high(q0), mix1), kM1);
      const V r0 = times(hn::Xor(high(q1), mix2), kM0);
      const V r1 = times(hn::Xor(q0, mix3), kM1);
      a0[s] = hn::Xor(high(r1), hn::Xor(q1, key0[2]));
      a2[s] = hn::Xor(high(r0), mix4);
      a1[s] = r1;
      a3[s] = r0;
    }
    for (int round = 3; round < 9; ++round)
      for (int s = 0; s < kSide; ++s) {
        const V q0 = times(a0[s], kM0), q1 = times(a2[s], kM1);
        a0[s] = hn::Xor(high(q1), hn::Xor(a1[s], key0[round]));
        a2[s] = hn::Xor(high(q0), hn::Xor(a3[s], key1[round]));
        a1[s] = q1;
        a3[s] = q0;
      }
    // The last round leaves words 0 and 1, and 2 and 3, in one lane.
    for (int s = 0; s < kSide; ++s) {
      const auto swapped = [&](V p) {
        return hn::BitCast(d, hn::Shuffle2301(hn::BitCast(half, p)));
      };
      const V q0 = times(a0[s], kM0), q1 = times(a2[s], kM1);
      const V w01 = hn::Xor(swapped(q1), hn::And(hn::Xor(a1[s], key0[9]), low));
      const V w23 = hn::Xor(swapped(q0), hn::And(hn::Xor(a3[s], key1[9]), low));
      auto* const out = reinterpret_cast<std::uint64_t*>(words + 4 * (j + s * lanes));
      hn::StoreU(hn::InterleaveLower(d, w01, w23), d, out);
      hn::StoreU(hn::InterleaveUpper(d, w01, w23), d, out + lanes);
    }
  }
}
#endif

// out = dropout(x), or h + dropout(x) where there is an h; x[0] is element `index` of the step.
template <class X, class Out>
void dropout_range(const Dropout& dropout, std::int64_t index, const float* h, const X* x, Out* out,
                   std::int64_t n) {
  const Floats d;
  const hn::RebindToUnsigned<Floats> du;
  const FloatVec scale = hn::Set(d, static_cast<float>(1 / (1 - dropout.p)));
  const auto threshold = hn::Set(du, ref::dropout_threshold(dropout.p));
  // The last partial vector may read behind the words that are drawn, but does not use that.
  HWY_ALIGN std::uint32_t words[static_cast<std::size_t>(kChunk) + hn::MaxLanes(d)];
  for (std::int64_t at = 0, size = 0; at < n; at += size) {
    const std::int64_t skip = (index + at) % 4, draws = (index + at) / 4;
    constexpr std::int64_t kSame = std::int64_t{1} << 32;  // draws that share the index's high word
    const std::int64_t most = std::min(kChunk, 4 * (kSame - draws % kSame));
    size = std::min(most - skip, n - at);
    draw(dropout, static_cast<std::uint64_t>(draws), (skip + size + 3) / 4, words);
    for_vectors(size, [&](std::int64_t i, auto lanes) {
      const auto drop = hn::Lt(hn::LoadU(du, words + skip + i), threshold);
      const FloatVec kept =
          hn::IfThenZeroElse(hn::RebindMask(d, drop), hn::Mul(scale, lanes.load(x + at + i)));
      lanes.store(h ? hn::Add(lanes.load(h + at + i), kept) : kept, out + at + i);
    });
  }
}

template <class X>
void add_range(const float* h, const X* x, float* y, std::int64_t n) {
  for_vectors(n, [&](std::int64_t i, auto lanes) {
    lanes.store(hn::Add(lanes.load(h + i), lanes.load(x + i)), y + i);
  });
}

}  // namespace

void add_float(const float* h, const float* x, float* y, std::int64_t n) { add_range(h, x, y, n); }
void add_bf16(const float* h, const bf16* x, float* y, std::int64_t n) { add_range(h, x, y, n); }

void dropout_float(const Dropout& dropout, std::int64_t index, const float* h, const float* x,
                   float* out, std::int64_t n) {
  dropout_range(dropout, index, h, x, out, n);
}
void dropout_from_bf16(const Dropout& dropout, std::int64_t index, const float* h, const bf16* x,
                       float* out, std::int64_t n) {
  dropout_range(dropout, index, h, x, out, n);
}
void dropout_to_bf16(const Dropout& dropout, std::int64_t index, const float* h, const float* x,
                     bf16* out, std::int64_t n) {
  dropout_range(dropout, index, h, x, out, n);
}

}  // namespace longstride::ops::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace longstride::ops {

HWY_EXPORT(add_float);
HWY_EXPORT(add_bf16);
HWY_EXPORT(dropout_float);
HWY_EXPORT(dropout_from_bf16);
HWY_EXPORT(dropout_to_bf16);

namespace cpu {

namespace {

constexpr std::int64_t kGrain = 16384;  // elements a task

template <class X, class Out, class Kernel>
void dropout(const Dropout& how, const float* h, Matrix<const X> x, Out* out, Kernel kernel) {
  parallel_ranges(x.rows * x.cols, kGrain, [&](std::int64_t begin, std::int64_t end) {
    kernel(how, how.first_row * x.cols + begin, h ? h + begin : nullptr, x.data + begin,
           out + begin, end - begin);
  });
}

template <class X, class Kernel>
void add(const Residual<float, X>& op, Kernel kernel) {
  parallel_ranges(op.x.rows * op.x.cols, kGrain, [&](std::int64_t begin, std::int64_t end) {
    kernel(op.h.data + begin, op.x.data + begin, op.y.data + begin, end - begin);
  });
}

}  // namespace

void residual(const Residual<float>& op) {
  if (op.dropout.p > 0)
    dropout(op.dropout, op.h.data, op.x, op.y.data, HWY_DYNAMIC_DISPATCH(dropout_float));
  else
    add(op, HWY_DYNAMIC_DISPATCH(add_float));
}

void residual(const Residual<float, bf16>& op) {
  if (op.dropout.p > 0)
    dropout(op.dropout, op.h.data, op.x, op.y.data, HWY_DYNAMIC_DISPATCH(dropout_from_bf16));
  else
    add(op, HWY_DYNAMIC_DISPATCH(add_bf16));
}

void residual_backward(const ResidualBackward<float>& op) {
  if (op.dropout.p > 0)
    return dropout(op.dropout, nullptr, op.dy, op.dx.data, HWY_DYNAMIC_DISPATCH(dropout_float));
  parallel_ranges(op.dy.rows * op.dy.cols, kGrain, [&](std::int64_t begin, std::int64_t end) {
    std::copy_n(op.dy.data + begin, end - begin, op.dx.data + begin);
  });
}

void residual_backward(const ResidualBackward<float, bf16>& op) {
  const std::int64_t size = op.dy.rows * op.dy.cols;
  if (op.dropout.p > 0)
    dropout(op.dropout, nullptr, op.dy, op.dx.data, HWY_DYNAMIC_DISPATCH(dropout_to_bf16));
  else
    convert({op.dy.data, size}, {op.dx.data, size});
}

}  // namespace cpu
}  // namespace longstride::ops
#endif  // HWY_ONCE
