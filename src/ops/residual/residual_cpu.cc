// The end of a residual branch. Dropout draws a few kilobytes of words at a time, beside the data.
// Bound: memory without dropout (12 bytes an element), else the ten rounds of Philox.
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "ops/residual/residual_cpu.cc"
#include "hwy/foreach_target.h"
// After foreach_target.h, which includes this file once per instruction set.
#include <algorithm>
#include <cstdint>

#include "base/rng.h"
#include "base/threads.h"
#include "ops/residual/residual.h"
#include "ops/residual/residual_ref.h"
#include "ops/simd.h"

HWY_BEFORE_NAMESPACE();
namespace longstride::ops::HWY_NAMESPACE {

namespace {

constexpr std::int64_t kChunk = 1024;  // words, whole vectors of draws on every instruction set

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
// stands in the high half is left there, because the multiplication does not read it.
void draw(const Dropout& dropout, std::uint64_t first, std::int64_t count, std::uint32_t* words) {
  const hn::ScalableTag<std::uint64_t> d;
  const hn::Repartition<std::uint32_t, decltype(d)> half;
  const auto low = hn::Set(d, 0xffffffffu);
  const auto step_high = hn::Set(d, dropout.step >> 32 << 24);
  const auto user =
      hn::Set(d, std::uint64_t{static_cast<std::uint32_t>(Stream::dropout)} << 20 ^ dropout.lane);
  const auto times = [&](auto a, std::uint32_t b) {
    return hn::MulEven(hn::BitCast(half, a), hn::Set(half, b));
  };
  // Vectors side by side, to hide the latency of a round.
  constexpr int kSide = 4;
  const auto lanes = static_cast<std::int64_t>(hn::Lanes(d));
  for (std::int64_t j = 0; j < count; j += kSide * lanes) {
    hn::Vec<decltype(d)> c0[kSide], c1[kSide], c2[kSide], c3[kSide];
    for (int s = 0; s < kSide; ++s) {
      c0[s] = hn::Iota(d, first + static_cast<std::uint64_t>(j + s * lanes));
      c1[s] = hn::Xor(hn::ShiftRight<32>(c0[s]), step_high);
      c2[s] = hn::Set(d, dropout.step);
      c3[s] = user;
    }
    auto k0 = static_cast<std::uint32_t>(dropout.seed);
    auto k1 = static_cast<std::uint32_t>(dropout.seed >> 32);
    for (int round = 0; round < 10; ++round) {
      const auto key0 = hn::Set(d, k0), key1 = hn::Set(d, k1);
      for (int s = 0; s < kSide; ++s) {
        const auto p0 = times(c0[s], 0xD2511F53u), p1 = times(c2[s], 0xCD9E8D57u);
        c0[s] = hn::Xor(hn::ShiftRight<32>(p1), hn::Xor(c1[s], key0));
        c2[s] = hn::Xor(hn::ShiftRight<32>(p0), hn::Xor(c3[s], key1));
        c1[s] = p1;
        c3[s] = p0;
      }
      k0 += 0x9E3779B9u;
      k1 += 0xBB67AE85u;
    }
    for (int s = 0; s < kSide; ++s) {
      const auto w01 = hn::Or(hn::And(c0[s], low), hn::ShiftLeft<32>(c1[s]));
      const auto w23 = hn::Or(hn::And(c2[s], low), hn::ShiftLeft<32>(c3[s]));
      hn::StoreInterleaved2(w01, w23, d,
                            reinterpret_cast<std::uint64_t*>(words + 4 * (j + s * lanes)));
    }
  }
}
#endif

}  // namespace

void add_range(const float* h, const float* x, float* y, std::int64_t n) {
  for_vectors(n, [&](std::int64_t i, auto lanes) {
    lanes.store(hn::Add(lanes.load(h + i), lanes.load(x + i)), y + i);
  });
}

// out = dropout(x), or h + dropout(x) where there is an h; x[0] is element `index` of the step.
void dropout_range(const Dropout& dropout, std::int64_t index, const float* h, const float* x,
                   float* out, std::int64_t n) {
  const Floats d;
  const hn::RebindToUnsigned<Floats> du;
  const FloatVec scale = hn::Set(d, static_cast<float>(1 / (1 - dropout.p)));
  const auto threshold = hn::Set(du, ref::dropout_threshold(dropout.p));
  // The last partial vector may read behind the words that are drawn, but does not use that.
  HWY_ALIGN std::uint32_t words[static_cast<std::size_t>(kChunk) + hn::MaxLanes(d)];
  for (std::int64_t at = 0, size = 0; at < n; at += size) {
    const std::int64_t skip = (index + at) % 4;
    size = std::min(kChunk - skip, n - at);
    draw(dropout, static_cast<std::uint64_t>((index + at) / 4), (skip + size + 3) / 4, words);
    for_vectors(size, [&](std::int64_t i, auto lanes) {
      const auto drop = hn::Lt(hn::LoadU(du, words + skip + i), threshold);
      const FloatVec kept =
          hn::IfThenZeroElse(hn::RebindMask(d, drop), hn::Mul(scale, lanes.load(x + at + i)));
      lanes.store(h ? hn::Add(lanes.load(h + at + i), kept) : kept, out + at + i);
    });
  }
}

}  // namespace longstride::ops::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace longstride::ops {

HWY_EXPORT(add_range);
HWY_EXPORT(dropout_range);

namespace cpu {

namespace {

constexpr std::int64_t kGrain = 16384;  // elements a task

void dropout(const Dropout& how, const float* h, Matrix<const float> x, float* out) {
  parallel_ranges(x.rows * x.cols, kGrain, [&](std::int64_t begin, std::int64_t end) {
    HWY_DYNAMIC_DISPATCH(dropout_range)
    (how, how.first_row * x.cols + begin, h ? h + begin : nullptr, x.data + begin, out + begin,
     end - begin);
  });
}

}  // namespace

void residual(const Residual<float>& op) {
  if (op.dropout.p > 0) return dropout(op.dropout, op.h.data, op.x, op.y.data);
  parallel_ranges(op.x.rows * op.x.cols, kGrain, [&](std::int64_t begin, std::int64_t end) {
    HWY_DYNAMIC_DISPATCH(add_range)
    (op.h.data + begin, op.x.data + begin, op.y.data + begin, end - begin);
  });
}

void residual_backward(const ResidualBackward<float>& op) {
  if (op.dropout.p > 0) return dropout(op.dropout, nullptr, op.dy, op.dx.data);
  parallel_ranges(op.dy.rows * op.dy.cols, kGrain, [&](std::int64_t begin, std::int64_t end) {
    std::copy_n(op.dy.data + begin, end - begin, op.dx.data + begin);
  });
}

}  // namespace cpu
}  // namespace longstride::ops
#endif  // HWY_ONCE
