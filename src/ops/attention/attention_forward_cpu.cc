// Attention forward on the CPU, float32.
//
//   S = scale Q K^T, one pass over the key chunks with a running softmax (row.h), O += P V
//
// A task takes a span of queries of a lane (parts one after the other, so that a part finds what
// the parts before it have stored) in groups of kGroup tiles: each chunk of keys and values is
// fetched once for the whole group and then read from the cache.
//
// work   2 (d_qk + d_v) flops a pair, plus the unkept pairs of tiles at the edge of an interval
// bound  compute for dense, local and row lanes; columns of few steps: fetching strided rows
#include <algorithm>
#include <cstdint>

#include "base/threads.h"
#include "ops/attention/attention_cpu.h"
#include "ops/attention/row.h"
#include "ops/attention/scratch.h"
#include "ops/attention/walk.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "ops/attention/attention_forward_cpu.cc"
#include <hwy/foreach_target.h>
// After foreach_target.h:
#include "ops/attention/simd-inl.h"

#ifndef LONGSTRIDE_OPS_ATTENTION_FORWARD_TASK
#define LONGSTRIDE_OPS_ATTENTION_FORWARD_TASK
namespace longstride::ops {

struct ForwardTask {
  const Attention<float>* op = nullptr;
  PartTask part;
};

// Tiles that share a fetched chunk: their state and the chunk (some 100 KiB at width 64) fit L2.
inline constexpr int kForwardGroup = 8;

struct ForwardTile {
  Tile tile;
  float *qt = nullptr, *ot = nullptr;  // [d_qk][kTile], [d_v][kTile]
  alignas(64) float max[kTile], sum[kTile];
};

}  // namespace longstride::ops
#endif

HWY_BEFORE_NAMESPACE();
namespace longstride::ops::HWY_NAMESPACE {
namespace {

// Raises max by the scores of the mask, scales sum and ot by e^{old - new}; s becomes
// p = e^{s - max}, added to sum in key order.
HWY_INLINE void softmax_step(const Mask& mask, std::int64_t v_width, float* s, ForwardTile& tile) {
  const Wide d;
  for (int n = 0; n < kVectors; ++n) {
    float* column = s + n * kLanes;
    const auto old = hn::Load(d, tile.max + n * kLanes);
    auto max = old;
    for (int r = 0; r < mask.runs; ++r) {
      const Run run = mask.run[static_cast<std::size_t>(r)];
      for (int j = run.begin; j < run.end; ++j) {
        const auto next = hn::Max(max, hn::Load(d, column + j * kTile));
        max = run.masked ? hn::IfThenElse(active(mask.active[j], n), next, max) : next;
      }
    }
    const auto same = hn::Eq(max, old);  // also: no key so far
    auto sum = hn::Load(d, tile.sum + n * kLanes);
    if (!hn::AllTrue(d, same)) {
      const auto shrink = hn::IfThenElse(same, hn::Set(d, 1.0f), exp(d, hn::Sub(old, max)));
      sum = hn::Mul(sum, shrink);
      hn::Store(max, d, tile.max + n * kLanes);
      for (std::int64_t c = 0; c < v_width; ++c) {
        float* out = tile.ot + c * kTile + n * kLanes;
        hn::Store(hn::Mul(hn::Load(d, out), shrink), d, out);
      }
    }
    for (int r = 0; r < mask.runs; ++r) {
      const Run run = mask.run[static_cast<std::size_t>(r)];
      for (int j = run.begin; j < run.end; ++j) {
        const auto p = exp(d, hn::Sub(hn::Load(d, column + j * kTile), max));
        hn::Store(p, d, column + j * kTile);
        const auto next = hn::Add(sum, p);
        sum = run.masked ? hn::IfThenElse(active(mask.active[j], n), next, sum) : next;
      }
    }
    hn::Store(sum, d, tile.sum + n * kLanes);
  }
}

void begin_tile(const ForwardTask& task, std::int64_t lane, std::int64_t step, int rows,
                ForwardTile& state) {
  const auto& q = task.op->q;
  state.tile = make_tile(*task.part.part, lane, step, rows);
  if (rows < kTile) std::fill_n(state.qt, q.width * kTile, 0.0f);
  transpose(
      [&](int r) {
        return q.at(task.part.batch, state.tile.query[static_cast<std::size_t>(r)], task.part.head);
      },
      rows, q.width, state.qt, kTile);
  std::fill_n(state.ot, task.op->v.width * kTile, 0.0f);
  for (int r = 0; r < kTile; ++r) state.max[r] = kNoKeys<float>, state.sum[r] = 0;
}

void end_tile(const ForwardTask& task, const ForwardTile& state, float* rows) {
  const auto& out = task.op->out;
  transpose([&](int c) { return state.ot + c * kTile; }, static_cast<int>(out.width), kTile, rows,
            out.width);
  for (int r = 0; r < state.tile.rows; ++r) {
    const Position i = state.tile.query[static_cast<std::size_t>(r)];
    const RowState<float> row = {state.max[r], state.sum[r], rows + r * out.width};
    finish_row(row, task.part.number == 0, out.width, out.at(task.part.batch, i, task.part.head),
               task.op->lse[(task.part.batch * out.heads + task.part.head) * out.length + i]);
  }
}

// Walks the chunks of `keys`, a group of tiles at each.
void attend(const ForwardTask& task, std::int64_t lane, Interval keys, ForwardTile* tiles,
            int count, float* s) {
  const auto& op = *task.op;
  const float *k[kKeyChunk + kSlack], *v[kKeyChunk];
  Mask mask;
  for (std::int64_t first = keys.begin / kKeyChunk * kKeyChunk; first < keys.end;
       first += kKeyChunk) {
    const Chunk chunk = make_chunk(*task.part.part, lane, first, keys);
    for (int j = chunk.begin; j < chunk.end; ++j) {
      const Position at = chunk.position[static_cast<std::size_t>(j)];
      k[j] = op.k.at(task.part.batch, at, task.part.head);
      v[j] = op.v.at(task.part.batch, at, task.part.head);
    }
    for (int j = chunk.end; j < chunk.end + kSlack; ++j) k[j] = k[chunk.end - 1];
    for (int t = 0; t < count; ++t) {
      if (!make_mask(*task.part.part, tiles[t].tile, chunk, mask)) continue;
      scores(k, mask.begin, mask.end, op.q.width, tiles[t].qt, op.scale, s);
      softmax_step(mask, op.v.width, s, tiles[t]);
      add_values(v, mask, op.v.width, s, tiles[t].ot);
    }
  }
}

void forward_task(const ForwardTask& task) {
  const std::int64_t qk_width = task.op->q.width, v_width = task.op->v.width;
  const std::int64_t tile_size = (qk_width + v_width) * kTile;
  const std::int64_t scores_size = (kKeyChunk + kSlack) * kTile;
  float* const memory = scratch<float>(kForwardGroup * tile_size + scores_size + v_width * kTile);
  float* const s = memory + kForwardGroup * tile_size;
  ForwardTile tiles[kForwardGroup];
  for (int t = 0; t < kForwardGroup; ++t) {
    tiles[t].qt = memory + t * tile_size;
    tiles[t].ot = tiles[t].qt + qk_width * kTile;
  }
  for (std::int64_t lane = task.part.span.lane_begin; lane < task.part.span.lane_end; ++lane) {
    const std::int64_t end =
        std::min(task.part.span.step_end, steps_below(*task.part.part, lane, task.op->q.length));
    for (std::int64_t step = task.part.span.step_begin; step < end;) {
      int count = 0;
      Interval keys = {task.part.part->keys(lane), 0};
      for (; count < kForwardGroup && step < end; ++count, step += kTile) {
        begin_tile(task, lane, step, static_cast<int>(std::min<std::int64_t>(kTile, end - step)),
                   tiles[count]);
        const Interval any = tiles[count].tile.any;
        if (!any.empty()) keys = {std::min(keys.begin, any.begin), std::max(keys.end, any.end)};
      }
      if (!keys.empty()) attend(task, lane, keys, tiles, count, s);
      for (int t = 0; t < count; ++t) end_tile(task, tiles[t], s + scores_size);
    }
  }
}

}  // namespace
}  // namespace longstride::ops::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace longstride::ops::cpu {

namespace {
HWY_EXPORT(forward_task);
}

void attention(const Attention<float>& op) {
  for (const auto& level : part_tasks(*op.plan, op.q.batch, op.q.length, false))
    parallel_for(static_cast<std::int64_t>(level.size()), [&](std::int64_t t) {
      HWY_DYNAMIC_DISPATCH(forward_task)({&op, level[static_cast<std::size_t>(t)]});
    });
}

}  // namespace longstride::ops::cpu
#endif
