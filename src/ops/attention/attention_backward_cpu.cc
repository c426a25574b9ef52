// Attention backward on the CPU, float32. Per tile and chunk five products, the scores recomputed:
//
//   P = e^{scale Q K^T - L}     dP = dO V^T      dS = scale P (dP - D),  D = sum_c dO O
//   dV += P^T dO    dK += dS^T Q    dQ += dS K
//
// A task owns the gradients of every key it reaches: a lane where lanes keep to their own keys
// (rows, columns), else all lanes of a (batch, head). So dK and dV are added to in place, in a
// fixed order, without atomics or copies to be summed. Splitting a long lane over tasks would take
// two passes with seven products; batch x heads tasks are enough for the cores of a CPU.
//
// work   2 (3 d_qk + 2 d_v) flops a pair      bound  compute, as forward
#include <algorithm>
#include <cstdint>

#include "base/threads.h"
#include "ops/attention/attention_cpu.h"
#include "ops/attention/scratch.h"
#include "ops/attention/walk.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "ops/attention/attention_backward_cpu.cc"
#include <hwy/foreach_target.h>
// After foreach_target.h:
#include "ops/attention/simd-inl.h"

#ifndef LONGSTRIDE_OPS_ATTENTION_BACKWARD_TASK
#define LONGSTRIDE_OPS_ATTENTION_BACKWARD_TASK
namespace longstride::ops {

struct BackwardTask {
  const AttentionBackward<float>* op = nullptr;
  PartTask part;
};

// Tiles that share a fetched chunk of K, V, dK, dV; all of it (some 150 KiB at width 64) fits L2.
inline constexpr int kBackwardGroup = 4;

struct BackwardTile {
  Tile tile;
  float *q = nullptr, *dout = nullptr;                     // [kTile][d_qk], [kTile][d_v]
  float *qt = nullptr, *dout_t = nullptr, *dqt = nullptr;  // [d][kTile]
  alignas(64) float lse[kTile], mean[kTile];               // mean: D
};

}  // namespace longstride::ops
#endif

HWY_BEFORE_NAMESPACE();
namespace longstride::ops::HWY_NAMESPACE {
namespace {

// rows[j][c] += sum_q w[j][q] x[q][c], j in [first, first + kKeys), kVecs vectors of D from c on.
template <class D, int kKeys, int kVecs, bool kMasked>
HWY_INLINE void add_outer(float* const* rows, int first, const Mask& mask, const float* w,
                          int queries, const float* x, std::int64_t width, std::int64_t c) {
  const D d;
  const hn::RebindToUnsigned<D> du;
  constexpr std::int64_t kStep = static_cast<std::int64_t>(hn::MaxLanes(D()));
  hn::Vec<D> sum[kKeys][kVecs];
#pragma GCC unroll 16
  for (int j = 0; j < kKeys; ++j)
#pragma GCC unroll 16
    for (int n = 0; n < kVecs; ++n) sum[j][n] = hn::LoadU(d, rows[first + j] + c + n * kStep);
  for (int q = 0; q < queries; ++q) {
    hn::Vec<D> row[kVecs];
#pragma GCC unroll 16
    for (int n = 0; n < kVecs; ++n) row[n] = hn::LoadU(d, x + q * width + c + n * kStep);
#pragma GCC unroll 16
    for (int j = 0; j < kKeys; ++j) {
      const auto weight = hn::Set(d, w[(first + j) * kTile + q]);
#pragma GCC unroll 16
      for (int n = 0; n < kVecs; ++n) {
        const auto next = hn::MulAdd(weight, row[n], sum[j][n]);
        if constexpr (kMasked)
          sum[j][n] = hn::IfThenElse(
              hn::RebindMask(d, hn::MaskFromVec(hn::Set(du, mask.active[first + j][q]))), next,
              sum[j][n]);
        else
          sum[j][n] = next;
      }
    }
  }
#pragma GCC unroll 16
  for (int j = 0; j < kKeys; ++j)
#pragma GCC unroll 16
    for (int n = 0; n < kVecs; ++n) hn::StoreU(sum[j][n], d, rows[first + j] + c + n * kStep);
}

template <int kKeys, bool kMasked>
HWY_INLINE void add_outer_run(float* const* rows, int begin, int end, const Mask& mask,
                              const float* w, int queries, const float* x, std::int64_t width) {
  for (; begin + kKeys <= end; begin += kKeys) {
    std::int64_t c = 0;
    for (; c + 2 * kLanes <= width; c += 2 * kLanes)
      add_outer<Wide, kKeys, 2, kMasked>(rows, begin, mask, w, queries, x, width, c);
    for (; c + kLanes <= width; c += kLanes)
      add_outer<Wide, kKeys, 1, kMasked>(rows, begin, mask, w, queries, x, width, c);
    for (; c < width; ++c)
      add_outer<One, kKeys, 1, kMasked>(rows, begin, mask, w, queries, x, width, c);
  }
  if constexpr (kKeys > 1)
    add_outer_run<kKeys / 2, kMasked>(rows, begin, end, mask, w, queries, x, width);
}

// rows[j] += sum_q w[j][q] x[q] over the kept pairs.
HWY_NOINLINE void add_to_keys(float* const* rows, const Mask& mask, const float* w, int queries,
                              const float* x, std::int64_t width) {
  constexpr int kKeys = 6;  // times 2 vectors: 12 accumulators
  for (int r = 0; r < mask.runs; ++r) {
    const Run run = mask.run[static_cast<std::size_t>(r)];
    if (run.masked)
      add_outer_run<kKeys, true>(rows, run.begin, run.end, mask, w, queries, x, width);
    else
      add_outer_run<kKeys, false>(rows, run.begin, run.end, mask, w, queries, x, width);
  }
}

// s becomes P, dp becomes dS. Pairs that are not kept get values that nobody reads.
HWY_INLINE void score_gradients(const Mask& mask, const BackwardTile& tile, float scale, float* s,
                                float* dp) {
  const Wide d;
  for (int n = 0; n < kVectors; ++n) {
    const auto lse = hn::Load(d, tile.lse + n * kLanes);
    const auto mean = hn::Load(d, tile.mean + n * kLanes);
    for (int j = mask.begin; j < mask.end; ++j) {
      float* const at = s + j * kTile + n * kLanes;
      float* const gradient = dp + j * kTile + n * kLanes;
      const auto p = exp(d, hn::Sub(hn::Load(d, at), lse));
      hn::Store(p, d, at);
      hn::Store(hn::Mul(hn::Mul(hn::Set(d, scale), p), hn::Sub(hn::Load(d, gradient), mean)), d,
                gradient);
    }
  }
}

// Packs the rows of x into rows [kTile][width] and columns [width][kTile], zero where no row is.
HWY_INLINE void pack(const Heads<const float>& x, const BackwardTask& task, const Tile& tile,
                     float* rows, float* columns) {
  for (int r = 0; r < tile.rows; ++r) {
    const float* from =
        x.at(task.part.batch, tile.query[static_cast<std::size_t>(r)], task.part.head);
    std::copy_n(from, x.width, rows + r * x.width);
  }
  if (tile.rows < kTile) std::fill_n(columns, x.width * kTile, 0.0f);
  transpose([&](int r) { return rows + r * x.width; }, tile.rows, x.width, columns, kTile);
}

void begin_tile(const BackwardTask& task, std::int64_t lane, std::int64_t step, int rows,
                BackwardTile& state) {
  const auto& op = *task.op;
  const Wide d;
  state.tile = make_tile(*task.part.part, lane, step, rows);
  // D, with dqt and dout as room for O, before they get what they are for.
  float* const out_t = state.dqt;
  pack(op.out, task, state.tile, state.dout, out_t);
  pack(op.dout, task, state.tile, state.dout, state.dout_t);
  pack(op.q, task, state.tile, state.q, state.qt);
  for (int n = 0; n < kVectors; ++n) {
    auto mean = hn::Zero(d);
    for (std::int64_t c = 0; c < op.v.width; ++c)
      mean = hn::MulAdd(hn::Load(d, state.dout_t + c * kTile + n * kLanes),
                        hn::Load(d, out_t + c * kTile + n * kLanes), mean);
    hn::Store(mean, d, state.mean + n * kLanes);
  }
  std::fill_n(state.dqt, op.q.width * kTile, 0.0f);
  for (int r = 0; r < kTile; ++r)
    state.lse[r] = r < rows ? op.lse[(task.part.batch * op.q.heads + task.part.head) * op.q.length +
                                     state.tile.query[static_cast<std::size_t>(r)]]
                            : 0;
}

void end_tile(const BackwardTask& task, const BackwardTile& state) {
  const auto& dq = task.op->dq;
  float* const rows = state.q;  // no longer needed
  transpose([&](int c) { return state.dqt + c * kTile; }, static_cast<int>(dq.width), kTile, rows,
            dq.width);
  for (int r = 0; r < state.tile.rows; ++r) {
    float* const to =
        dq.at(task.part.batch, state.tile.query[static_cast<std::size_t>(r)], task.part.head);
    for (std::int64_t c = 0; c < dq.width; ++c) to[c] += rows[r * dq.width + c];
  }
}

void differentiate(const BackwardTask& task, std::int64_t lane, Interval keys, BackwardTile* tiles,
                   int count, float* s) {
  const auto& op = *task.op;
  const std::int64_t b = task.part.batch, h = task.part.head;
  const float *k[kKeyChunk + kSlack], *v[kKeyChunk + kSlack];
  float *dk[kKeyChunk], *dv[kKeyChunk];
  float* const dp = s + (kKeyChunk + kSlack) * kTile;
  Mask mask;
  for (std::int64_t first = keys.begin / kKeyChunk * kKeyChunk; first < keys.end;
       first += kKeyChunk) {
    const Chunk chunk = make_chunk(*task.part.part, lane, first, keys);
    for (int j = chunk.begin; j < chunk.end; ++j) {
      const Position at = chunk.position[static_cast<std::size_t>(j)];
      k[j] = op.k.at(b, at, h), v[j] = op.v.at(b, at, h);
      dk[j] = op.dk.at(b, at, h), dv[j] = op.dv.at(b, at, h);
    }
    for (int j = chunk.end; j < chunk.end + kSlack; ++j)
      k[j] = k[chunk.end - 1], v[j] = v[chunk.end - 1];
    for (int t = 0; t < count; ++t) {
      const BackwardTile& tile = tiles[t];
      if (!make_mask(*task.part.part, tile.tile, chunk, mask)) continue;
      scores(k, mask.begin, mask.end, op.q.width, tile.qt, op.scale, s);
      scores(v, mask.begin, mask.end, op.v.width, tile.dout_t, 1, dp);
      score_gradients(mask, tile, op.scale, s, dp);
      add_to_keys(dv, mask, s, tile.tile.rows, tile.dout, op.v.width);
      add_to_keys(dk, mask, dp, tile.tile.rows, tile.q, op.q.width);
      add_values(k, mask, op.q.width, dp, tile.dqt);
    }
  }
}

void backward_task(const BackwardTask& task) {
  const std::int64_t qk_width = task.op->q.width, v_width = task.op->v.width;
  const std::int64_t widest = std::max(qk_width, v_width);
  const std::int64_t tile_size = 2 * (qk_width + v_width) * kTile + widest * kTile;
  float* const memory =
      scratch<float>(kBackwardGroup * tile_size + 2 * (kKeyChunk + kSlack) * kTile);
  BackwardTile tiles[kBackwardGroup];
  for (int t = 0; t < kBackwardGroup; ++t) {
    tiles[t].q = memory + t * tile_size;
    tiles[t].qt = tiles[t].q + qk_width * kTile;
    tiles[t].dout = tiles[t].qt + qk_width * kTile;
    tiles[t].dout_t = tiles[t].dout + v_width * kTile;
    tiles[t].dqt = tiles[t].dout_t + v_width * kTile;
  }
  const PartPlan& part = *task.part.part;
  for (std::int64_t lane = task.part.span.lane_begin; lane < task.part.span.lane_end; ++lane) {
    const std::int64_t end = steps_below(part, lane, task.op->q.length);
    for (std::int64_t step = 0; step < end;) {
      int count = 0;
      Interval keys = {part.keys(lane), 0};
      for (; count < kBackwardGroup && step < end; ++count, step += kTile) {
        begin_tile(task, lane, step, static_cast<int>(std::min<std::int64_t>(kTile, end - step)),
                   tiles[count]);
        const Interval any = tiles[count].tile.any;
        if (!any.empty()) keys = {std::min(keys.begin, any.begin), std::max(keys.end, any.end)};
      }
      if (keys.empty()) continue;
      differentiate(task, lane, keys, tiles, count, memory + kBackwardGroup * tile_size);
      for (int t = 0; t < count; ++t) end_tile(task, tiles[t]);
    }
  }
}

}  // namespace
}  // namespace longstride::ops::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace longstride::ops::cpu {

namespace {
HWY_EXPORT(backward_task);
}

void attention_backward(const AttentionBackward<float>& op) {
  clear_gradients(op);
  for (const auto& level : part_tasks(*op.plan, op.q.batch, op.q.length, true))
    parallel_for(static_cast<std::int64_t>(level.size()), [&](std::int64_t t) {
      HWY_DYNAMIC_DISPATCH(backward_task)({&op, level[static_cast<std::size_t>(t)]});
    });
}

}  // namespace longstride::ops::cpu
#endif
