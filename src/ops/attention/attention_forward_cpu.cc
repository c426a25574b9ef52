// Attention forward on the CPU, float32 and bf16 (then scores, softmax and sums are float32).
//
//   S = scale Q K^T, one pass over the key chunks with a running softmax (row.h), O += P V
//
// A task takes a span of queries of a lane (parts one after the other, so that a part finds what
// the parts before it have stored) in groups of kForwardGroup tiles: each chunk of keys and values
// is packed once for the whole group and then read from the cache.
//
// work   2 (d_qk + d_v) flops a pair, plus the unkept pairs of tiles at the edge of an interval
// bytes  each group: its q and out, and the keys and values it reaches
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
#include "ops/attention/pack-inl.h"
#include "ops/attention/products-inl.h"
#include "ops/attention/simd-inl.h"

#ifndef LONGSTRIDE_OPS_ATTENTION_FORWARD_TASK
#define LONGSTRIDE_OPS_ATTENTION_FORWARD_TASK
namespace longstride::ops {

template <class A>
struct ForwardTask {
  const Attention<A>* op = nullptr;
  PartTask part;
};

// Tiles that share a packed chunk: their state and the chunk (some 100 KiB at width 64) fit L2.
inline constexpr int kForwardGroup = 8;

struct ForwardTile {
  Tile tile;
  float *qt = nullptr, *ot = nullptr;  // [d_qk][kTile], [d_v][kTile]
  alignas(64) float max[kTile], sum[kTile];
};

// Of one thread.
struct ForwardScratch {
  ForwardTile tiles[kForwardGroup];
  float *k, *v;  // a packed chunk
  float* s[2];   // scores of two tiles, [kKeyChunk][kTile]
  float* rows;   // a tile's queries or results, [kTile][the wider width]
  Mask mask[2];
  bool finite;  // the values of the chunk
};

}  // namespace longstride::ops
#endif

HWY_BEFORE_NAMESPACE();
namespace longstride::ops::HWY_NAMESPACE {
namespace {

// Raises max by the scores of the mask, scales sum and ot by e^{old - new}; s becomes
// p = e^{s - max}, added to sum in key order, or zero where the pair is not kept.
HWY_NOINLINE void softmax_step(const Mask& mask, std::int64_t v_width, float* s,
                               ForwardTile& tile) {
  const Wide d;
  using V = hn::Vec<Wide>;
  V max[kVectors], sum[kVectors];
#pragma GCC unroll 16
  for (int n = 0; n < kVectors; ++n) {
    max[n] = hn::Load(d, tile.max + n * kLanes);
    sum[n] = hn::Load(d, tile.sum + n * kLanes);
  }
  const auto raise = [&](int j, const auto& kept) HWY_ATTR {
#pragma GCC unroll 16
    for (int n = 0; n < kVectors; ++n)
      max[n] = kept(n, hn::Max(max[n], hn::Load(d, s + j * kTile + n * kLanes)), max[n]);
  };
  for_keys(mask, raise);

#pragma GCC unroll 16
  for (int n = 0; n < kVectors; ++n) {
    const V old = hn::Load(d, tile.max + n * kLanes);
    const auto same = hn::Eq(max[n], old);  // also: no key so far
    if (hn::AllTrue(d, same)) continue;
    const V shrink = hn::IfThenElse(same, hn::Set(d, 1.0f), exp(d, hn::Sub(old, max[n])));
    sum[n] = hn::Mul(sum[n], shrink);
    hn::Store(max[n], d, tile.max + n * kLanes);
    for (std::int64_t c = 0; c < v_width; ++c) {
      float* const out = tile.ot + c * kTile + n * kLanes;
      hn::Store(hn::Mul(hn::Load(d, out), shrink), d, out);
    }
  }
  const auto weigh = [&](int j, const auto& kept) HWY_ATTR {
#pragma GCC unroll 16
    for (int n = 0; n < kVectors; ++n) {
      float* const at = s + j * kTile + n * kLanes;
      const V p = kept(n, exp(d, hn::Sub(hn::Load(d, at), max[n])), hn::Zero(d));
      hn::Store(p, d, at);
      sum[n] = hn::Add(sum[n], p);
    }
  };
  for_keys(mask, weigh);
#pragma GCC unroll 16
  for (int n = 0; n < kVectors; ++n) hn::Store(sum[n], d, tile.sum + n * kLanes);
}

template <class A>
HWY_NOINLINE void begin_tile(const ForwardTask<A>& task, std::int64_t lane, std::int64_t step,
                             int rows, ForwardScratch& scratch, ForwardTile& state) {
  const auto& q = task.op->q;
  state.tile = make_tile(*task.part.part, lane, step, rows);
  pack_queries(q, task.part.batch, task.part.head, state.tile, scratch.rows);
  if (rows < kTile) std::fill_n(state.qt, q.width * kTile, 0.0f);
  transpose([&](int r) { return scratch.rows + r * q.width; }, rows, q.width, state.qt, kTile);
  std::fill_n(state.ot, task.op->v.width * kTile, 0.0f);
  for (int r = 0; r < kTile; ++r) state.max[r] = kNoKeys<float>, state.sum[r] = 0;
}

// out[c] = e.before out[c] + e.here row[c]; an out that counts for nothing is not read.
template <class A>
HWY_INLINE void merge_row(const RowEnd<float>& e, const float* row, std::int64_t width, A* out) {
  const auto merge = [&](auto d, std::int64_t c) HWY_ATTR {
    auto x = hn::Mul(hn::Set(d, e.here), hn::LoadU(d, row + c));
    if (e.merges) x = hn::Add(hn::Mul(hn::Set(d, e.before), load(d, out + c)), x);
    store(x, d, out + c);
  };
  std::int64_t c = 0;
  for (; c + kLanes <= width; c += kLanes) merge(Wide(), c);
  for (; c < width; ++c) merge(One(), c);
}

template <class A>
HWY_NOINLINE void end_tile(const ForwardTask<A>& task, const ForwardTile& state, float* rows) {
  const auto& out = task.op->out;
  for (int r = 0; r < std::min(state.tile.rows, kRowsAhead); ++r)
    prefetch_row(
        out.at(task.part.batch, state.tile.query[static_cast<std::size_t>(r)], task.part.head),
        out.width);
  transpose([&](int c) { return state.ot + c * kTile; }, static_cast<int>(out.width), kTile, rows,
            out.width);
  for (int r = 0; r < state.tile.rows; ++r) {
    const Position i = state.tile.query[static_cast<std::size_t>(r)];
    A* const to = out.at(task.part.batch, i, task.part.head);
    if (r + kRowsAhead < state.tile.rows)
      prefetch_row(
          out.at(task.part.batch, state.tile.query[static_cast<std::size_t>(r + kRowsAhead)],
                 task.part.head),
          out.width);
    const auto end =
        end_of_row(state.max[r], state.sum[r], task.part.number == 0,
                   task.op->lse[(task.part.batch * out.heads + task.part.head) * out.length + i]);
    if (!end.unchanged) merge_row(end, rows + r * out.width, out.width, to);
  }
}

// Scores, softmax and values of two tiles over one chunk.
template <class A>
void absorb_pair(const ForwardTask<A>& task, ForwardTile* tiles, ForwardScratch& at) {
  const std::int64_t qk_width = task.op->q.width, v_width = task.op->v.width;
  for_tiles<kTilesAtOnce>(at.mask, [&](auto count, int t, int begin, int end) HWY_ATTR {
    const float* const qt[2] = {tiles[t].qt, tiles[1].qt};
    float* const s[2] = {at.s[t], at.s[1]};
    scores<decltype(count)::value>(at.k, begin, end, qk_width, qt, task.op->scale, s);
  });
  bool plain = true;
  for (int t = 0; t < 2; ++t) {
    if (at.mask[t].empty()) continue;
    softmax_step(at.mask[t], v_width, at.s[t], tiles[t]);
    plain = plain && (at.finite || !at.mask[t].has_gaps());
  }
  if (plain)
    for_tiles<kTilesAtOnce>(at.mask, [&](auto count, int t, int begin, int end) HWY_ATTR {
      const float* const p[2] = {at.s[t], at.s[1]};
      float* const ot[2] = {tiles[t].ot, tiles[1].ot};
      add_values<decltype(count)::value>(at.v, begin, end, v_width, p, ot);
    });
  else
    for (int t = 0; t < 2; ++t)
      if (!at.mask[t].empty())
        add_values_with_gaps(at.v, at.mask[t], v_width, at.s[t], tiles[t].ot);
}

// Walks the chunks of `keys`, a group of tiles at each.
template <class A>
void attend(const ForwardTask<A>& task, std::int64_t lane, Interval keys, int count,
            ForwardScratch& at) {
  const auto& op = *task.op;
  const PartPlan& part = *task.part.part;
  for (std::int64_t first = keys.begin / kKeyChunk * kKeyChunk; first < keys.end;
       first += kKeyChunk) {
    const Chunk chunk = make_chunk(part, lane, first, keys);
    pack_keys(op.k, task.part.batch, task.part.head, chunk, at.k);
    at.finite = pack_keys(op.v, task.part.batch, task.part.head, chunk, at.v);
    for (int t = 0; t < count; t += 2) {
      bool any = false;
      for (int u = 0; u < 2; ++u) {
        at.mask[u].clear();
        any = (t + u < count && make_mask(part, at.tiles[t + u].tile, chunk, at.mask[u])) || any;
      }
      if (any) absorb_pair(task, at.tiles + t, at);
    }
  }
}

HWY_MAYBE_UNUSED ForwardScratch prepare(std::int64_t qk_width, std::int64_t v_width) {
  ForwardScratch at;
  const std::int64_t widest = std::max(qk_width, v_width);
  float* free = scratch<float>((kForwardGroup * kTile + kKeyChunk) * (qk_width + v_width) +
                               2 * kKeyChunk * kTile + kTile * widest);
  const auto take = [&](std::int64_t size) {
    free += size;
    return free - size;
  };
  for (ForwardTile& tile : at.tiles) {
    tile.qt = take(qk_width * kTile);
    tile.ot = take(v_width * kTile);
  }
  for (float*& s : at.s) s = take(kKeyChunk * kTile);
  at.k = take(kKeyChunk * qk_width);
  at.v = take(kKeyChunk * v_width);
  at.rows = take(kTile * widest);
  return at;
}

template <class A>
HWY_INLINE void forward_task(const ForwardTask<A>& task) {
  ForwardScratch at = prepare(task.op->q.width, task.op->v.width);
  const std::int64_t length = task.op->q.length, size = kForwardGroup * kTile;
  for (Group group = first_group(task.part, length, size); !group.empty();
       group = next_group(task.part, length, size, group)) {
    int count = 0;
    Interval keys = {task.part.part->keys(group.lane), 0};
    for (std::int64_t step = group.begin; step < group.end; ++count, step += kTile) {
      begin_tile(task, group.lane, step,
                 static_cast<int>(std::min<std::int64_t>(kTile, group.end - step)), at,
                 at.tiles[count]);
      const Interval any = at.tiles[count].tile.any;
      if (!any.empty()) keys = {std::min(keys.begin, any.begin), std::max(keys.end, any.end)};
    }
    if (!keys.empty()) attend(task, group.lane, keys, count, at);
    for (int t = 0; t < count; ++t) end_tile(task, at.tiles[t], at.rows);
  }
}

void forward_task_f32(const ForwardTask<float>& task) { forward_task(task); }
void forward_task_bf16(const ForwardTask<bf16>& task) { forward_task(task); }

}  // namespace
}  // namespace longstride::ops::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace longstride::ops::cpu {

namespace {

HWY_EXPORT(forward_task_f32);
HWY_EXPORT(forward_task_bf16);

template <class A, class Run>
void run_levels(const Attention<A>& op, const Run& run) {
  for (const auto& level : forward_tasks(*op.plan, op.q.batch, op.q.length))
    parallel_for(static_cast<std::int64_t>(level.size()), [&](std::int64_t t) {
      run(ForwardTask<A>{&op, level[static_cast<std::size_t>(t)]});
    });
}

}  // namespace

void attention(const Attention<float>& op) {
  run_levels(op, [](const auto& task) { HWY_DYNAMIC_DISPATCH(forward_task_f32)(task); });
}

void attention(const Attention<bf16>& op) {
  run_levels(op, [](const auto& task) { HWY_DYNAMIC_DISPATCH(forward_task_bf16)(task); });
}

}  // namespace longstride::ops::cpu
#endif
