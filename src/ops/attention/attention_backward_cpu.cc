// Attention backward on the CPU, float32 and bf16. Per tile and chunk five products, the scores
// recomputed:
//
//   P = e^{scale Q K^T - L}     dP = dO V^T      dS = scale P (dP - D),  D = sum_c dO O
//   dV += P^T dO    dK += dS^T Q    dQ += dS K
//
// The tasks of a level have no query and no key in common (walk.h), so all gradients are added to
// in place, in a fixed order, without atomics or copies to be summed. A task takes a group of tiles
// at a time: a chunk of K and V, and the sums dK and dV of its keys, are packed once for all
// of them. Where a task is the first to reach a key it stores the sums, else it adds to those
// there.
//
// work   2 (3 d_qk + 2 d_v) flops a pair      bound  compute, as forward
#include <algorithm>
#include <cstdint>

#include "base/threads.h"
#include "ops/attention/attention_cpu.h"
#include "ops/attention/walk.h"
#include "ops/scratch.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "ops/attention/attention_backward_cpu.cc"
#include <hwy/foreach_target.h>
// After foreach_target.h:
#include "ops/attention/pack-inl.h"
#include "ops/attention/products-inl.h"
#include "ops/attention/simd-inl.h"

#ifndef LONGSTRIDE_OPS_ATTENTION_BACKWARD_TASK
#define LONGSTRIDE_OPS_ATTENTION_BACKWARD_TASK
namespace longstride::ops {

template <class A>
struct BackwardTask {
  const AttentionBackward<A>* op = nullptr;
  PartTask part;
};

struct BackwardTile {
  Tile tile;
  float *q = nullptr, *dout = nullptr;                     // [kTile][d_qk], [kTile][d_v]
  float *qt = nullptr, *dout_t = nullptr, *dqt = nullptr;  // [d][kTile]
  alignas(64) float lse[kTile], mean[kTile];               // mean: D
  bool finite;                                             // q and dout
};

// Of one thread; some 220 KiB at width 64.
struct BackwardScratch {
  BackwardTile tiles[kGroupTiles];
  float *k, *v, *dk, *dv;  // a packed chunk
  float *s[2], *dp[2];     // scores and their gradients of two tiles, [kKeyChunk][kTile]
  Mask mask[2];
  bool finite;  // the keys of the chunk
};

}  // namespace longstride::ops
#endif

HWY_BEFORE_NAMESPACE();
namespace longstride::ops::HWY_NAMESPACE {
namespace {

// s becomes P, dp becomes dS; both zero where the pair is not kept.
HWY_NOINLINE void score_gradients(const Mask& mask, const BackwardTile& tile, float scale, float* s,
                                  float* dp) {
  const Wide d;
  using V = hn::Vec<Wide>;
  V lse[kVectors], mean[kVectors];
#pragma GCC unroll 16
  for (int n = 0; n < kVectors; ++n) {
    lse[n] = hn::Load(d, tile.lse + n * kLanes);
    mean[n] = hn::Load(d, tile.mean + n * kLanes);
  }
  for_keys(mask, [&](int j, const auto& keep) HWY_ATTR {
#pragma GCC unroll 16
    for (int n = 0; n < kVectors; ++n) {
      float* const at = s + j * kTile + n * kLanes;
      float* const gradient = dp + j * kTile + n * kLanes;
      const V p = exp(d, hn::Sub(hn::Load(d, at), lse[n]));
      const V ds = hn::Mul(hn::Mul(hn::Set(d, scale), p), hn::Sub(hn::Load(d, gradient), mean[n]));
      hn::Store(keep(n, p, hn::Zero(d)), d, at);
      hn::Store(keep(n, ds, hn::Zero(d)), d, gradient);
    }
  });
}

template <class A>
HWY_NOINLINE void begin_tile(const BackwardTask<A>& task, const Tile& cut, BackwardTile& state) {
  const auto& op = *task.op;
  const Wide d;
  const std::int64_t b = task.part.batch, h = task.part.head;
  state.tile = cut;
  const int rows = cut.rows;
  const auto columns = [&](const float* from, std::int64_t width, float* to) {
    if (rows < kTile) std::fill_n(to, width * kTile, 0.0f);
    transpose([&](int r) { return from + r * width; }, rows, width, to, kTile);
  };
  for (int r = 0; r < std::min(rows, kRowsAhead); ++r) {
    const Position i = cut.query[static_cast<std::size_t>(r)];
    prefetch_row(op.dout.at(b, i, h), op.v.width);
    prefetch_row(op.q.at(b, i, h), op.q.width);
  }
  // D, with dqt and dout as room for O, before they get what they are for.
  float* const out_t = state.dqt;
  pack_queries(op.out, b, h, cut, state.dout);
  columns(state.dout, op.v.width, out_t);
  state.finite = pack_queries(op.dout, b, h, cut, state.dout);
  columns(state.dout, op.v.width, state.dout_t);
  state.finite = pack_queries(op.q, b, h, cut, state.q) && state.finite;
  columns(state.q, op.q.width, state.qt);
  for (int n = 0; n < kVectors; ++n) {
    auto mean = hn::Zero(d);
    for (std::int64_t c = 0; c < op.v.width; ++c)
      mean = hn::MulAdd(hn::Load(d, state.dout_t + c * kTile + n * kLanes),
                        hn::Load(d, out_t + c * kTile + n * kLanes), mean);
    hn::Store(mean, d, state.mean + n * kLanes);
  }
  std::fill_n(state.dqt, op.q.width * kTile, 0.0f);
  for (int r = 0; r < kTile; ++r)
    state.lse[r] =
        r < rows
            ? op.lse[(b * op.q.heads + h) * op.q.length + cut.query[static_cast<std::size_t>(r)]]
            : 0;
}

// to[c] (+)= from[c]
HWY_INLINE void write_row(const float* from, std::int64_t width, bool add, float* to) {
  for_row(width, [&](std::int64_t c, auto lanes) HWY_ATTR {
    const auto x = lanes.load(from + c);
    lanes.store(add ? hn::Add(lanes.load(to + c), x) : x, to + c);
  });
}

template <class A>
HWY_NOINLINE void end_tile(const BackwardTask<A>& task, const BackwardTile& state) {
  const auto& dq = task.op->dq;
  float* const rows = state.q;  // no longer needed
  transpose([&](int c) { return state.dqt + c * kTile; }, static_cast<int>(dq.width), kTile, rows,
            dq.width);
  for (int r = 0; r < state.tile.rows; ++r)
    write_row(
        rows + r * dq.width, dq.width, !task.part.first_of_queries,
        dq.at(task.part.batch, state.tile.query[static_cast<std::size_t>(r)], task.part.head));
}

// dv += p^T dout, dk += ds^T q of one or two tiles over keys that are common to them.
template <int kTiles>
HWY_INLINE void add_to_chunk(const BackwardTile* const* tiles, const float* const* p,
                             const float* const* ds, int begin, int end, std::int64_t qk_width,
                             std::int64_t v_width, BackwardScratch& at) {
  Outer<kTiles> dv, dk;
  for (int t = 0; t < kTiles; ++t) {
    dv.w[t] = p[t], dk.w[t] = ds[t];
    dv.x[t] = tiles[t]->dout, dk.x[t] = tiles[t]->q;
    dv.queries[t] = dk.queries[t] = tiles[t]->tile.rows;
  }
  add_to_keys<kTiles>(at.dv, begin, end, dv, v_width);
  add_to_keys<kTiles>(at.dk, begin, end, dk, qk_width);
}

template <class A>
void differentiate_pair(const BackwardTask<A>& task, BackwardTile* tiles, BackwardScratch& at) {
  const std::int64_t qk_width = task.op->q.width, v_width = task.op->v.width;
  const auto products = [&](auto common) HWY_ATTR { for_tiles<kTilesAtOnce>(at.mask, common); };
  products([&](auto count, int t, int begin, int end) HWY_ATTR {
    const float* const qt[2] = {tiles[t].qt, tiles[1].qt};
    const float* const dout_t[2] = {tiles[t].dout_t, tiles[1].dout_t};
    float* const s[2] = {at.s[t], at.s[1]};
    float* const dp[2] = {at.dp[t], at.dp[1]};
    scores<decltype(count)::value>(at.k, begin, end, qk_width, qt, task.op->scale, s);
    scores<decltype(count)::value>(at.v, begin, end, v_width, dout_t, 1, dp);
  });
  bool plain_keys = true, plain_queries = true;
  for (int t = 0; t < 2; ++t) {
    if (at.mask[t].empty()) continue;
    score_gradients(at.mask[t], tiles[t], task.op->scale, at.s[t], at.dp[t]);
    plain_keys = plain_keys && (at.finite || !at.mask[t].has_gaps());
    plain_queries = plain_queries && (tiles[t].finite || !at.mask[t].has_gaps());
  }
  if (plain_queries)
    for_tiles<2>(at.mask, [&](auto count, int t, int begin, int end) HWY_ATTR {
      const BackwardTile* const of[2] = {&tiles[t], &tiles[1]};
      const float *const p[2] = {at.s[t], at.s[1]}, *const ds[2] = {at.dp[t], at.dp[1]};
      add_to_chunk<decltype(count)::value>(of, p, ds, begin, end, qk_width, v_width, at);
    });
  else
    for (int t = 0; t < 2; ++t) {
      const BackwardTile& tile = tiles[t];
      if (at.mask[t].empty()) continue;
      add_to_keys_with_gaps(at.dv, at.mask[t], at.s[t], tile.tile.rows, tile.dout, v_width);
      add_to_keys_with_gaps(at.dk, at.mask[t], at.dp[t], tile.tile.rows, tile.q, qk_width);
    }
  if (plain_keys)
    products([&](auto count, int t, int begin, int end) HWY_ATTR {
      const float* const ds[2] = {at.dp[t], at.dp[1]};
      float* const dqt[2] = {tiles[t].dqt, tiles[1].dqt};
      add_values<decltype(count)::value>(at.k, begin, end, qk_width, ds, dqt);
    });
  else
    for (int t = 0; t < 2; ++t)
      if (!at.mask[t].empty())
        add_values_with_gaps(at.k, at.mask[t], qk_width, at.dp[t], tiles[t].dqt);
}

// The sums of a chunk's keys: zero for keys [fresh, end), what is there for those before. The rows
// beside the chunk get what a pair that is not kept adds: zeros.
HWY_NOINLINE void load_sums(const Heads<float>& x, const PartTask& task, const Chunk& chunk,
                            int fresh, float* to) {
  const int begin = chunk.begin / 2 * 2, end = (chunk.end + 1) / 2 * 2;
  if (begin < chunk.begin) std::fill_n(to + begin * x.width, x.width, 0.0f);
  for (int j = chunk.begin; j < fresh; ++j)
    write_row(x.at(task.batch, chunk.position[static_cast<std::size_t>(j)], task.head), x.width,
              false, to + j * x.width);
  std::fill(to + fresh * x.width, to + end * x.width, 0.0f);
}

HWY_NOINLINE void store_sums(const float* from, const PartTask& task, const Chunk& chunk,
                             const Heads<float>& x) {
  for (int j = chunk.begin; j < chunk.end; ++j)
    write_row(from + j * x.width, x.width, false,
              x.at(task.batch, chunk.position[static_cast<std::size_t>(j)], task.head));
}

// A chunk for all tiles of its group. The keys before `touched` have sums.
template <class A>
void differentiate(const BackwardTask<A>& task, const Job& job, std::int64_t touched,
                   BackwardScratch& at) {
  const auto& op = *task.op;
  const PartPlan& part = *task.part.part;
  const Chunk& chunk = job.chunk;
  const int count = job.group->count;
  at.finite = pack_keys(op.k, task.part.batch, task.part.head, chunk, at.k);
  pack_keys(op.v, task.part.batch, task.part.head, chunk, at.v);
  const int fresh =
      static_cast<int>(std::clamp<std::int64_t>(touched - chunk.first, chunk.begin, chunk.end));
  load_sums(op.dk, task.part, chunk, fresh, at.dk);
  load_sums(op.dv, task.part, chunk, fresh, at.dv);
  for (int t = 0; t < count; t += 2) {
    bool any = false;
    for (int u = 0; u < 2; ++u) {
      at.mask[u].clear();
      any = (t + u < count && make_mask(part, at.tiles[t + u].tile, chunk, at.mask[u])) || any;
    }
    if (any) differentiate_pair(task, at.tiles + t, at);
  }
  store_sums(at.dk, task.part, chunk, op.dk);
  store_sums(at.dv, task.part, chunk, op.dv);
}

HWY_MAYBE_UNUSED BackwardScratch prepare(std::int64_t qk_width, std::int64_t v_width) {
  BackwardScratch at;
  const std::int64_t widest = std::max(qk_width, v_width);
  thread_local Scratch memory;
  float* free = memory.at_least(kGroupTiles * kTile * (2 * (qk_width + v_width) + widest) +
                                kKeyChunk * 2 * (qk_width + v_width) + 4 * kKeyChunk * kTile);
  const auto take = [&](std::int64_t size) {
    free += size;
    return free - size;
  };
  for (BackwardTile& tile : at.tiles) {
    tile.q = take(kTile * qk_width);
    tile.qt = take(kTile * qk_width);
    tile.dout = take(kTile * v_width);
    tile.dout_t = take(kTile * v_width);
    tile.dqt = take(kTile * widest);
  }
  for (int t = 0; t < 2; ++t) {
    at.s[t] = take(kKeyChunk * kTile);
    at.dp[t] = take(kKeyChunk * kTile);
  }
  for (float** x : {&at.k, &at.dk}) *x = take(kKeyChunk * qk_width);
  for (float** x : {&at.v, &at.dv}) *x = take(kKeyChunk * v_width);
  return at;
}

template <class A>
HWY_INLINE void backward_task(const BackwardTask<A>& task) {
  BackwardScratch at = prepare(task.op->q.width, task.op->v.width);
  Jobs jobs(task.part, task.op->q.length, task.part.first_of_queries);
  std::int64_t lane = -1, touched = 0;
  for (Job job; jobs.next(job);) {
    const Group& group = *job.group;
    if (job.first)
      for (int t = 0; t < group.count; ++t)
        begin_tile(task, group.tiles[static_cast<std::size_t>(t)], at.tiles[t]);
    if (group.lane != lane) {
      lane = group.lane;
      touched = task.part.first_of_keys ? group.allowed.begin : group.allowed.end;
    }
    if (!group.keys.empty()) differentiate(task, job, touched, at);
    if (!job.last) continue;
    touched = std::max(touched, group.keys.end);
    for (int t = 0; t < group.count; ++t) end_tile(task, at.tiles[t]);
  }
}

void backward_task_f32(const BackwardTask<float>& task) { backward_task(task); }
void backward_task_bf16(const BackwardTask<bf16>& task) { backward_task(task); }

}  // namespace
}  // namespace longstride::ops::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace longstride::ops::cpu {

namespace {

HWY_EXPORT(backward_task_f32);
HWY_EXPORT(backward_task_bf16);

// Zeroes dK and dV of the heads where no task is the first to reach each key (walk.h).
constexpr std::int64_t kRows = 64;  // of a task

template <class A>
void clear_sums(const AttentionBackward<A>& op) {
  std::vector<std::int64_t> heads;
  for (std::int64_t h = 0; h < op.q.heads; ++h) {
    const auto kind = static_cast<std::size_t>(op.plan->kind_of_head[static_cast<std::size_t>(h)]);
    if (!sees_itself(op.plan->kinds[kind].parts.front())) heads.push_back(h);
  }
  if (heads.empty()) return;
  const std::int64_t N = op.q.length;
  parallel_ranges(op.q.batch * N, kRows, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t r = begin; r < end; ++r)
      for (const auto* x : {&op.dk, &op.dv})
        for (const std::int64_t h : heads) std::fill_n(x->at(r / N, r % N, h), x->width, 0.0f);
  });
}

template <class A, class Run>
void run_levels(const AttentionBackward<A>& op, const Run& run) {
  clear_sums(op);
  for (const auto& level : gradient_tasks(*op.plan, op.q.batch, op.q.length))
    parallel_for(static_cast<std::int64_t>(level.size()), [&](std::int64_t t) {
      run(BackwardTask<A>{&op, level[static_cast<std::size_t>(t)]});
    });
}

}  // namespace

void attention_backward(const AttentionBackward<float>& op) {
  run_levels(op, [](const auto& task) { HWY_DYNAMIC_DISPATCH(backward_task_f32)(task); });
}

void attention_backward(const AttentionBackward<bf16>& op) {
  run_levels(op, [](const auto& task) { HWY_DYNAMIC_DISPATCH(backward_task_bf16)(task); });
}

}  // namespace longstride::ops::cpu
#endif
