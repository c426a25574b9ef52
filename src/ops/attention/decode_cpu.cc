// Decoding on the CPU, float32: one row, the same operations per element as a row of a tile in
// attention_forward_cpu.cc, in the same order; what is vectorised differs. Scores run down kKeys
// chains of single values (a key is contiguous in its width, which must be summed in order), the
// softmax is vectorised over keys, the output over the width.
//
// bound  memory once the cache outgrows L2: (d_qk + d_v) 4 bytes a key
#include <cstdint>

#include "base/threads.h"
#include "ops/attention/attention_cpu.h"
#include "ops/attention/row.h"
#include "ops/attention/walk.h"
#include "ops/scratch.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "ops/attention/decode_cpu.cc"
#include <hwy/foreach_target.h>
// After foreach_target.h:
#include "ops/attention/simd-inl.h"

#ifndef LONGSTRIDE_OPS_ATTENTION_ROW_CHUNK
#define LONGSTRIDE_OPS_ATTENTION_ROW_CHUNK
namespace longstride::ops {

// Kept keys of one chunk. k has kSlack readable pointers behind `count`.
struct RowChunk {
  const float *q = nullptr, *const *k = nullptr, *const *v = nullptr;
  std::int64_t qk_width = 0, v_width = 0;
  float scale = 1;
  int count = 0;
};

}  // namespace longstride::ops
#endif

HWY_BEFORE_NAMESPACE();
namespace longstride::ops::HWY_NAMESPACE {
namespace {

HWY_INLINE void row_scores(const RowChunk& chunk, float* s) {
  constexpr int kKeys = 8;  // chains of MulAdd: latency 4, two a cycle
  const One d;
  for (int j = 0; j < chunk.count; j += kKeys) {
    hn::Vec<One> sum[kKeys];
#pragma GCC unroll 16
    for (int b = 0; b < kKeys; ++b) sum[b] = hn::Zero(d);
    for (std::int64_t c = 0; c < chunk.qk_width; ++c) {
      const auto q = hn::Set(d, chunk.q[c]);
#pragma GCC unroll 16
      for (int b = 0; b < kKeys; ++b)
        sum[b] = hn::MulAdd(hn::LoadU(d, chunk.k[j + b] + c), q, sum[b]);
    }
#pragma GCC unroll 16
    for (int b = 0; b < kKeys; ++b)
      hn::StoreU(hn::Mul(sum[b], hn::Set(d, chunk.scale)), d, s + j + b);
  }
}

// out[c] += sum_j p[j] v[j][c] for c in [first, first + kVecs lanes).
template <class D, int kVecs>
HWY_INLINE void add_columns(const RowChunk& chunk, const float* p, std::int64_t first, float* out) {
  const D d;
  constexpr std::int64_t kStep = static_cast<std::int64_t>(hn::MaxLanes(D()));
  hn::Vec<D> sum[kVecs];
#pragma GCC unroll 16
  for (int n = 0; n < kVecs; ++n) sum[n] = hn::LoadU(d, out + first + n * kStep);
  for (int j = 0; j < chunk.count; ++j) {
    const auto weight = hn::Set(d, p[j]);
#pragma GCC unroll 16
    for (int n = 0; n < kVecs; ++n)
      sum[n] = hn::MulAdd(hn::LoadU(d, chunk.v[j] + first + n * kStep), weight, sum[n]);
  }
#pragma GCC unroll 16
  for (int n = 0; n < kVecs; ++n) hn::StoreU(sum[n], d, out + first + n * kStep);
}

void absorb_chunk(const RowChunk& chunk, RowState<float>& state) {
  const Wide d;
  alignas(64) float s[kKeyChunk + kSlack] = {};
  row_scores(chunk, s);
  float max = state.max;
  for (int j = 0; j < chunk.count; ++j) max = s[j] > max ? s[j] : max;
  if (max != state.max) {
    const float shrink = hn::GetLane(exp(d, hn::Set(d, state.max - max)));
    state.sum *= shrink;
    for (std::int64_t c = 0; c < chunk.v_width; ++c) state.out[c] *= shrink;
    state.max = max;
  }
  for (int j = 0; j < chunk.count; j += kLanes)
    hn::Store(exp(d, hn::Sub(hn::Load(d, s + j), hn::Set(d, max))), d, s + j);
  for (int j = 0; j < chunk.count; ++j) state.sum += s[j];
  std::int64_t c = 0;
  for (; c + 4 * kLanes <= chunk.v_width; c += 4 * kLanes)
    add_columns<Wide, 4>(chunk, s, c, state.out);
  for (; c + kLanes <= chunk.v_width; c += kLanes) add_columns<Wide, 1>(chunk, s, c, state.out);
  for (; c < chunk.v_width; ++c) add_columns<One, 1>(chunk, s, c, state.out);
}

}  // namespace
}  // namespace longstride::ops::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace longstride::ops::cpu {

namespace {

HWY_EXPORT(absorb_chunk);

void decode_head(const Decode<float>& op, std::int64_t h) {
  const KvCache<float>& cache = *op.cache;
  const std::int64_t v_width = cache.v_width();
  const auto& parts =
      cache.plan()
          .kinds[static_cast<std::size_t>(cache.plan().kind_of_head[static_cast<std::size_t>(h)])]
          .parts;
  thread_local Scratch memory;
  float* const part_out = memory.at_least(v_width);
  const auto absorb = HWY_DYNAMIC_DISPATCH(absorb_chunk);
  const float *k[kKeyChunk + kSlack], *v[kKeyChunk];
  float lse = kNoKeys<float>;
  for (std::size_t p = 0; p < parts.size(); ++p) {
    for (std::int64_t c = 0; c < v_width; ++c) part_out[c] = 0;
    RowState<float> state{.out = part_out};
    walk_row(parts[p], op.position, [&](int count, const Position* kept) {
      for (int j = 0; j < count; ++j) {
        const std::int64_t slot = parts[p].cache_slot(kept[j]);
        k[j] = cache.key(h, p, slot);
        v[j] = cache.value(h, p, slot);
      }
      for (int j = count; j < count + kSlack; ++j) k[j] = k[count - 1];
      absorb({op.q + h * cache.qk_width(), k, v, cache.qk_width(), v_width, op.scale, count},
             state);
    });
    finish_row(state, p == 0, v_width, op.out + h * v_width, lse);
  }
}

// Keys that the row reaches: what its time is proportional to.
std::int64_t reached_keys(const KvCache<float>& cache, Position i) {
  std::int64_t keys = 0;
  for (const std::int64_t kind : cache.plan().kind_of_head)
    for (const PartPlan& part : cache.plan().kinds[static_cast<std::size_t>(kind)].parts)
      keys += part.reach(part.lane_of(i), part.step_of(i)).size();
  return keys;
}

}  // namespace

void decode(const Decode<float>& op) {
  // Below some 50 us of work a second thread would cost more than it saves.
  constexpr std::int64_t kWorthThreads = 1 << 18;
  const KvCache<float>& cache = *op.cache;
  const std::int64_t work = reached_keys(cache, op.position) * (cache.qk_width() + cache.v_width());
  parallel_ranges(cache.heads(), work < kWorthThreads ? cache.heads() : 1,
                  [&](std::int64_t begin, std::int64_t end) {
                    for (std::int64_t h = begin; h < end; ++h) decode_head(op, h);
                  });
}

}  // namespace longstride::ops::cpu
#endif
