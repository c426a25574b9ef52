// Attention forward on the CPU, float32 and bf16 (then scores, softmax and sums are float32).
//
//   S = scale Q K^T, one pass over the key chunks with a running softmax (row.h), O += P V
//
// A task takes a span of queries of a lane (parts one after the other, so that a part finds what
// the parts before it have stored) in groups of tiles: each chunk of keys and values is packed once
// for the whole group and then read from the cache. While the products of a chunk run, the rows of
// the next one, or of the next group, are packed in small steps, so that no one waits for memory.
//
// work   2 (d_qk + d_v) flops a pair, plus the unkept pairs of tiles at the edge of an interval
// bytes  each group: its q and out, and the keys and values it reaches
// bound  compute for dense, local and row lanes; columns of few steps: fetching strided rows
#include <algorithm>
#include <cstdint>

#include "base/threads.h"
#include "ops/attention/attention_cpu.h"
#include "ops/attention/row.h"
#include "ops/attention/walk.h"
#include "ops/scratch.h"

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

struct ForwardTile {
  const Tile* tile = nullptr;
  float *qt = nullptr, *ot = nullptr;  // [d_qk][kTile], [d_v][kTile]
  alignas(64) float max[kTile], sum[kTile];
};

struct ForwardJob : Job {
  float *k = nullptr, *v = nullptr;  // its packed chunk
  bool finite = true;                // the values
  float* queries = nullptr;          // of its group, [kGroupTiles][kTile][d_qk]
  std::int64_t added = 0;            // rows to the queue, with those of the jobs before
};

// Jobs whose rows are fetched while another one runs: two, as of the chunks of a group the last is
// for few tiles, too short to fetch the next group's.
inline constexpr int kForwardAhead = 2;

// Of one thread; some 240 KiB at width 64.
template <class A>
struct ForwardScratch {
  ForwardTile tiles[kGroupTiles];
  ForwardJob jobs[1 + kForwardAhead];
  RowQueue<A> queue;
  float* queries[kForwardAhead];
  float* s[2];  // scores of two tiles, [kKeyChunk][kTile]
  float* rows;  // results of a tile, [kTile][d_v]
  Mask mask[2];
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
HWY_NOINLINE void begin_tile(const ForwardTask<A>& task, const Tile& tile, const float* queries,
                             ForwardTile& state) {
  const auto& q = task.op->q;
  state.tile = &tile;
  if (tile.rows < kTile) std::fill_n(state.qt, q.width * kTile, 0.0f);
  transpose([&](int r) { return queries + r * q.width; }, tile.rows, q.width, state.qt, kTile);
  std::fill_n(state.ot, task.op->v.width * kTile, 0.0f);
  for (int r = 0; r < kTile; ++r) state.max[r] = kNoKeys<float>, state.sum[r] = 0;
}

// out[c] = e.before out[c] + e.here row[c]; an out that counts for nothing is not read.
template <class A>
HWY_INLINE void merge_row(const RowEnd<float>& e, const float* row, std::int64_t width, A* out) {
  const Floats d;
  for_row(width, [&](std::int64_t c, auto lanes) HWY_ATTR {
    auto x = hn::Mul(hn::Set(d, e.here), lanes.load(row + c));
    if (e.merges) x = hn::Add(hn::Mul(hn::Set(d, e.before), lanes.load(out + c)), x);
    lanes.store(x, out + c);
  });
}

template <class A>
HWY_NOINLINE void end_tile(const ForwardTask<A>& task, const ForwardTile& state, float* rows) {
  const auto& out = task.op->out;
  for (int r = 0; r < std::min(state.tile->rows, kRowsAhead); ++r)
    prefetch_row(
        out.at(task.part.batch, state.tile->query[static_cast<std::size_t>(r)], task.part.head),
        out.width);
  transpose([&](int c) { return state.ot + c * kTile; }, static_cast<int>(out.width), kTile, rows,
            out.width);
  for (int r = 0; r < state.tile->rows; ++r) {
    const Position i = state.tile->query[static_cast<std::size_t>(r)];
    A* const to = out.at(task.part.batch, i, task.part.head);
    if (r + kRowsAhead < state.tile->rows)
      prefetch_row(
          out.at(task.part.batch, state.tile->query[static_cast<std::size_t>(r + kRowsAhead)],
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
void absorb_pair(const ForwardTask<A>& task, const ForwardJob& job, ForwardTile* tiles,
                 ForwardScratch<A>& at) {
  const std::int64_t qk_width = task.op->q.width, v_width = task.op->v.width;
  for_tiles<kTilesAtOnce>(at.mask, [&](auto count, int t, int begin, int end) HWY_ATTR {
    const float* const qt[2] = {tiles[t].qt, tiles[1].qt};
    float* const s[2] = {at.s[t], at.s[1]};
    pack_some(at.queue, kRowsAtOnce);
    scores<decltype(count)::value>(job.k, begin, end, qk_width, qt, task.op->scale, s);
  });
  bool plain = true;
  for (int t = 0; t < 2; ++t) {
    if (at.mask[t].empty()) continue;
    pack_some(at.queue, kRowsAtOnce);
    softmax_step(at.mask[t], v_width, at.s[t], tiles[t]);
    plain = plain && (job.finite || !at.mask[t].has_gaps());
  }
  if (plain)
    for_tiles<kTilesAtOnce>(at.mask, [&](auto count, int t, int begin, int end) HWY_ATTR {
      const float* const p[2] = {at.s[t], at.s[1]};
      float* const ot[2] = {tiles[t].ot, tiles[1].ot};
      pack_some(at.queue, kRowsAtOnce);
      add_values<decltype(count)::value>(job.v, begin, end, v_width, p, ot);
    });
  else
    for (int t = 0; t < 2; ++t)
      if (!at.mask[t].empty())
        add_values_with_gaps(job.v, at.mask[t], v_width, at.s[t], tiles[t].ot);
}

// A chunk for all tiles of its group.
template <class A>
void attend(const ForwardTask<A>& task, const ForwardJob& job, ForwardScratch<A>& at) {
  const int count = job.group->count;
  for (int t = 0; t < count; t += 2) {
    bool any = false;
    for (int u = 0; u < 2; ++u) {
      at.mask[u].clear();
      any = (t + u < count &&
             make_mask(*task.part.part, *at.tiles[t + u].tile, job.chunk, at.mask[u])) ||
            any;
    }
    if (any) absorb_pair(task, job, at.tiles + t, at);
  }
}

// Queues the rows of a job: until they are packed it must stay where it is.
template <class A>
void queue_rows(const ForwardTask<A>& task, float* queries, ForwardJob& job,
                ForwardScratch<A>& at) {
  job.finite = true;
  job.queries = queries;
  queue_keys(task.op->k, task.part, job.chunk, job.k, nullptr, at.queue);
  queue_keys(task.op->v, task.part, job.chunk, job.v, &job.finite, at.queue);
  const std::int64_t size = kTile * task.op->q.width;
  for (int t = 0; job.first && t < job.group->count; ++t)
    queue_queries(task.op->q, task.part, job.group->tiles[static_cast<std::size_t>(t)],
                  queries + t * size, nullptr, at.queue);
  job.added = at.queue.added;
}

template <class A>
void prepare(std::int64_t qk_width, std::int64_t v_width, ForwardScratch<A>& at) {
  thread_local Scratch memory;
  float* free = memory.at_least((3 * qk_width + v_width) * kGroupTiles * kTile +
                                3 * kKeyChunk * (qk_width + v_width + kTile) + kTile * v_width);
  const auto take = [&](std::int64_t size) {
    free += size;
    return free - size;
  };
  for (ForwardTile& tile : at.tiles) {
    tile.qt = take(qk_width * kTile);
    tile.ot = take(v_width * kTile);
  }
  for (float*& queries : at.queries) queries = take(kGroupTiles * kTile * qk_width);
  for (float*& s : at.s) s = take(kKeyChunk * kTile);
  for (ForwardJob& job : at.jobs) {
    job.k = take(kKeyChunk * qk_width);
    job.v = take(kKeyChunk * v_width);
  }
  at.rows = take(kTile * v_width);
}

template <class A>
HWY_INLINE void forward_task(const ForwardTask<A>& task) {
  ForwardScratch<A> at;
  prepare(task.op->q.width, task.op->v.width, at);
  Jobs jobs(task.part, task.op->q.length, true);
  const std::int64_t size = kTile * task.op->q.width;
  int queued = 0, groups = 0;
  bool more = true;
  const auto queue_next = [&] {
    ForwardJob& job = at.jobs[queued % (1 + kForwardAhead)];
    more = more && jobs.next(job);
    if (!more) return;
    if (job.first) ++groups;
    queue_rows(task, at.queries[groups % kForwardAhead], job, at);
    ++queued;
  };
  for (int n = 0; n < kForwardAhead; ++n) queue_next();
  for (int n = 0; n < queued; ++n) {
    const ForwardJob& job = at.jobs[n % (1 + kForwardAhead)];
    pack_until(at.queue, job.added);
    if (job.first)
      for (int t = 0; t < job.group->count; ++t)
        begin_tile(task, job.group->tiles[static_cast<std::size_t>(t)], job.queries + t * size,
                   at.tiles[t]);
    queue_next();
    attend(task, job, at);
    if (job.last)
      for (int t = 0; t < job.group->count; ++t) end_tile(task, at.tiles[t], at.rows);
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
