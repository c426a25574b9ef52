// Rows that wait to be packed (pack-inl.h).
#pragma once

#include <array>

#include "ops/attention/walk.h"

namespace longstride::ops {

// Rows of one head of x at some positions, which become rows to[r][width]. finite: if not null,
// cleared where a value is not finite.
template <class A>
struct RowRun {
  Heads<const A> x;
  std::int64_t batch = 0, head = 0;
  const Position* at = nullptr;
  int rows = 0;
  float* to = nullptr;
  bool* finite = nullptr;

  const A* row(int r) const { return x.at(batch, at[r], head); }
};

// A ring of runs. So far `added` rows came in, of which `asked` are asked for and `packed` packed;
// the first that is not packed is row `row` of run `run`.
template <class A>
struct RowQueue {
  static constexpr int kRuns = 2 * (2 + kGroupTiles);  // of two jobs: keys, values, queries

  std::array<RowRun<A>, kRuns> runs;
  int count = 0, run = 0, row = 0;
  std::int64_t added = 0, asked = 0, packed = 0;

  RowRun<A>& at(int n) { return runs[static_cast<std::size_t>(n % kRuns)]; }
  void add(const RowRun<A>& rows) {
    at(count++) = rows;
    added += rows.rows;
  }
};

}  // namespace longstride::ops
