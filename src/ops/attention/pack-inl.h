// Moves between tensors, in place, and the scratch of the attention kernels: rows become packed
// float rows, so float32 and bfloat16 share the kernels, and rows that lie a power of two apart
// (H d values, in a column lane l H d) do not fight for the same few sets of a cache.
#if defined(LONGSTRIDE_OPS_ATTENTION_PACK_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef LONGSTRIDE_OPS_ATTENTION_PACK_INL_H_
#undef LONGSTRIDE_OPS_ATTENTION_PACK_INL_H_
#else
#define LONGSTRIDE_OPS_ATTENTION_PACK_INL_H_
#endif

#include <hwy/cache_control.h>

#include "ops/attention/row_queue.h"
#include "ops/attention/simd-inl.h"
#include "ops/simd.h"

HWY_BEFORE_NAMESPACE();
namespace longstride::ops::HWY_NAMESPACE {
namespace {

// body(c, lanes) for the vectors of a row, the last one perhaps partial.
template <class Body>
HWY_INLINE void for_row(std::int64_t width, const Body& body) {
  std::int64_t c = 0;
  for (; c + kLanes <= width; c += kLanes) body(c, Whole{});
  if (c < width) body(c, ops::HWY_NAMESPACE::Part{width - c});
}

// Asks for the cache lines of a row that will be read.
template <class A>
HWY_INLINE void prefetch_row(const A* row, std::int64_t width) {
  constexpr std::int64_t kLine = 64 / static_cast<std::int64_t>(sizeof(A));
  for (std::int64_t c = 0; c < width; c += kLine) hwy::Prefetch(row + c);
}

// Rows that are asked for before they are read: enough for memory to work on several, few enough
// for the sets of a cache that rows a power of two apart share.
constexpr int kRowsAhead = 6;

// Rows of one step of a RowQueue: they arrive while a product of a tile runs.
constexpr int kRowsAtOnce = 8;

// Stays zero as long as all values seen are finite: x - x is not, where x is not.
struct Finite {
  FloatVec bits;

  HWY_INLINE void see(FloatVec x) { bits = hn::Or(bits, hn::Sub(x, x)); }
  HWY_INLINE bool all() const { return hn::AllTrue(Floats(), hn::Eq(bits, hn::Zero(Floats()))); }
};

// to[c] = from[c]
template <class A>
HWY_INLINE void pack_row(const A* from, std::int64_t width, float* to, Finite& finite) {
  for_row(width, [&](std::int64_t c, auto lanes) HWY_ATTR {
    const auto x = lanes.load(from + c);
    finite.see(x);
    lanes.store(x, to + c);
  });
}

// The rows at `count` positions, packed [count][width]. False: not all values are finite.
template <class A>
HWY_INLINE bool pack_rows(const Heads<const A>& x, std::int64_t batch, std::int64_t head,
                          const Position* at, int count, float* to) {
  Finite finite{hn::Zero(Floats())};
  for (int r = 0; r < count; ++r) {
    if (r + kRowsAhead < count) prefetch_row(x.at(batch, at[r + kRowsAhead], head), x.width);
    pack_row(x.at(batch, at[r], head), x.width, to + r * x.width, finite);
  }
  return finite.all();
}

// Zeros beside the rows of a chunk, where kernels that take keys two by two may read.
HWY_INLINE HWY_MAYBE_UNUSED void clear_beside(const Chunk& chunk, std::int64_t width, float* to) {
  if (chunk.begin % 2 != 0) std::fill_n(to + (chunk.begin - 1) * width, width, 0.0f);
  if (chunk.end % 2 != 0) std::fill_n(to + chunk.end * width, width, 0.0f);
}

// The rows of a chunk's keys, packed [kKeyChunk][width]. False: not all values are finite.
template <class A>
HWY_NOINLINE bool pack_keys(const Heads<const A>& x, std::int64_t batch, std::int64_t head,
                            const Chunk& chunk, float* to) {
  clear_beside(chunk, x.width, to);
  return pack_rows(x, batch, head, chunk.position.data() + chunk.begin, chunk.end - chunk.begin,
                   to + chunk.begin * x.width);
}

// The queries of a tile as rows [kTile][width]. False: not all values are finite.
template <class A>
HWY_INLINE bool pack_queries(const Heads<const A>& x, std::int64_t batch, std::int64_t head,
                             const Tile& tile, float* to) {
  return pack_rows(x, batch, head, tile.query.data(), tile.rows, to);
}

// Packs the rows that are queued for later jobs in small steps between the products of the current
// one: a step packs the rows that the step before has asked memory for, and asks for `count` more.
template <class A>
HWY_NOINLINE void pack_some(RowQueue<A>& queue, int count) {
  while (queue.packed < queue.asked) {
    const RowRun<A>& run = queue.at(queue.run);
    const int rows =
        static_cast<int>(std::min<std::int64_t>(queue.asked - queue.packed, run.rows - queue.row));
    Finite finite{hn::Zero(Floats())};
    for (int r = queue.row; r < queue.row + rows; ++r)
      pack_row(run.row(r), run.x.width, run.to + r * run.x.width, finite);
    if (run.finite != nullptr && !finite.all()) *run.finite = false;
    queue.packed += rows, queue.row += rows;
    if (queue.row == run.rows) ++queue.run, queue.row = 0;
  }
  int row = queue.row;
  for (int n = queue.run; count > 0 && n < queue.count; ++n, row = 0) {
    const RowRun<A>& run = queue.at(n);
    for (; count > 0 && row < run.rows; ++row, --count, ++queue.asked)
      prefetch_row(run.row(row), run.x.width);
  }
}

// Packs the rows that were added first, `added` of them.
template <class A>
HWY_INLINE void pack_until(RowQueue<A>& queue, std::int64_t added) {
  while (queue.packed < added) pack_some(queue, kRowsAhead);
}

// Queues the keys of a chunk, to become rows [kKeyChunk][width] with zeros beside them.
template <class A>
HWY_INLINE void queue_keys(const Heads<const A>& x, const PartTask& task, const Chunk& chunk,
                           float* to, bool* finite, RowQueue<A>& queue) {
  if (chunk.begin >= chunk.end) return;
  queue.add({x, task.batch, task.head, chunk.position.data() + chunk.begin, chunk.end - chunk.begin,
             to + chunk.begin * x.width, finite});
  clear_beside(chunk, x.width, to);
}

// Queues the queries of a tile, to become rows [kTile][width].
template <class A>
HWY_INLINE void queue_queries(const Heads<const A>& x, const PartTask& task, const Tile& tile,
                              float* to, bool* finite, RowQueue<A>& queue) {
  queue.add({x, task.batch, task.head, tile.query.data(), tile.rows, to, finite});
}

}  // namespace
}  // namespace longstride::ops::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif
