// The plan: what kernels walk, what the sampler keeps, what work is counted, all derived from the
// parts of include/longstride/pattern.h for one sequence length.
//
// A part renumbers positions by a *fold* into (lane, step); every lane is a sequence of queries.
// A lane has a *key sequence*: key index t = 0, 1, ... -> position, ascending. What a query sees
// is one *interval* of key indices, so no part needs a stored list of pairs, at any length:
//
//   part             lanes      query (lane, s)  key t of the lane           interval of step s
//   dense            1          s                t                           [0, s+1)
//   local(w)         1          s                t                           [max(0, s+1-w), s+1)
//   column(l)        min(l, N)  lane + s l       lane + t l                  [0, s+1)
//   row(l)           ceil(N/l)  lane l + s       lane l + t                  [0, s+1)
//   summary(l,c,g)   1          s                (t/c) l + l - c(g+1) + t%c  [0, c (s/l))
//   previous_row(l)  ceil(N/l)  lane l + s       (lane-1) l + t              [0, l), lane 0: none
//   global(g)        1          s                t                           [0, min(g, s+1))
//   random, blocks   ceil(N/b)  lane b + s       list[t/b] b + t%b           positions <= own
//
// Neither end of an interval moves backwards within a lane, so the queries that see key t are an
// interval too. In a union a pair belongs to the first part that has it. Where what the earlier
// parts take away are the first or the last keys of every query, it is cut off here (local +
// column: the column part ends one step back); otherwise the part is `masked` and keeps() decides
// pair by pair.
#pragma once

#include <cstdint>
#include <vector>

#include "longstride/pattern.h"

namespace longstride {

struct Interval {
  std::int64_t begin = 0, end = 0;
  bool empty() const { return begin >= end; }
  std::int64_t size() const { return empty() ? 0 : end - begin; }
};

// What earlier parts of a union take from both ends of the positions that a query sees.
struct Cuts {
  bool everything = false;
  struct RowCut {  // all positions >= (i / stride - back) stride
    std::int64_t stride, back;
  };
  Position first = 0;       // all positions < first
  std::int64_t newest = 0;  // all positions > i - newest
  std::vector<RowCut> from_row;
  std::vector<std::int64_t> before_row;  // of each stride: all positions < (i / stride) stride

  Interval left(Position i) const;  // the positions that are left, of all up to i
};

// Part number `part` of a head, at one length. Cheap to copy.
class PartPlan {
 public:
  // Takes O(length) where parts of the union overlap. Throws invalid_argument for a part that is
  // not fit for use (a summary without a group, a mask too large at this length).
  PartPlan(const HeadPattern& head, std::size_t part, std::int64_t length);

  std::int64_t lanes() const { return lanes_; }
  std::int64_t steps(std::int64_t lane) const;  // queries of the lane, at least 1
  std::int64_t keys(std::int64_t lane) const;   // length of the lane's key sequence, may be 0
  Position query(std::int64_t lane, std::int64_t step) const;
  Position key(std::int64_t lane, std::int64_t t) const;
  // Inside [0, keys(lane)]. An empty interval keeps its place: begin == end, and both ends never
  // decrease from step to step, so [begin of the first, end of the last] covers all steps between.
  Interval reach(std::int64_t lane, std::int64_t step) const;
  // Key t of a lane lies t times one distance behind its first, and neither end of reach() moves by
  // more than one key from step to step.
  bool even() const;
  std::int64_t lane_of(Position i) const;
  std::int64_t step_of(Position i) const;
  std::int64_t keys_before(std::int64_t lane, Position x) const;  // keys at positions < x

  // Some pair inside an interval may belong to an earlier part of the union: ask keeps().
  bool masked() const { return masked_; }
  // The exact truth for this part: what it attends to, minus earlier parts.
  bool keeps(Position i, Position j) const;

  // Whether two lanes may read the same key (then one task must own all lanes' key gradients).
  bool lanes_share_keys() const { return lanes_share_keys_; }

  // The sampler's cache of this part: position j lives in slot cache_slot(j) < cache_slots(), or
  // is not kept (-1). A slot is overwritten only when no later query reads its old position.
  std::int64_t cache_slots() const;
  std::int64_t cache_slot(Position j) const;

  std::int64_t length() const { return length_; }
  const Part& part() const { return part_; }
  const Cuts& cuts() const { return cuts_; }
  const Blocks& lists() const { return lists_; }  // random, blocks: the key blocks of each lane

 private:
  // lane 0, step i | lane i % size_, step i / size_ | lane i / size_, step i % size_
  enum class Fold { line, columns, rows };

  void fold();
  void cut();
  bool cut_by(const Part& earlier);
  Interval positions(Position i) const;  // covers the keys that i sees, after the cuts
  bool always(bool (*holds)(const Interval& mine, const Interval& theirs),
              const Part& earlier) const;

  Part part_;
  HeadPattern earlier_;  // the parts before this one in the union; random as blocks
  Blocks lists_;         // random, blocks: the key blocks of each lane
  Cuts cuts_;
  Fold fold_ = Fold::line;
  std::int64_t size_ = 1;  // of the fold
  std::int64_t length_ = 0, lanes_ = 1;
  bool masked_ = false, lanes_share_keys_ = false;
};

struct HeadPlan {
  std::vector<PartPlan> parts;
};

// One layer's plan: head h uses kinds[kind_of_head[h]]. Equal heads share a kind.
struct AttentionPlan {
  AttentionPlan() = default;
  AttentionPlan(const std::vector<HeadPattern>& heads, std::int64_t length);

  std::int64_t length = 0;
  std::vector<HeadPlan> kinds;
  std::vector<HeadPattern> patterns;  // [kinds]
  std::vector<std::int64_t> kind_of_head;
};

}  // namespace longstride
