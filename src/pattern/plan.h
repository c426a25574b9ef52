// The plan: what kernels walk, what the sampler keeps, what work is counted, all derived from the
// parts of include/longstride/pattern.h for one sequence length.
//
// A part renumbers positions by a *fold* into (lane, step); every lane is a sequence of queries.
// A lane has a *key sequence*: key index t = 0, 1, ... -> position, ascending. What a query sees
// is one *interval* of key indices, so no part needs a stored list of pairs, at any length:
//
//   part            lanes        position(lane, s)   key t of the lane                 interval of
//   (lane, s) dense           1            s                   t [0, s+1) local(w)        1 s t
//   [max(0, s+1-w), s+1) column(l)       l            lane + s l          lane + t l [0, s+1)
//   row(l)          ceil(N/l)    lane l + s          lane l + t                        [0, s+1)
//   summary(l,c,g)  1            s                   (t/c) l + l - c(g+1) + t%c        [0, c (s/l))
//   previous_row    ceil(N/l)    lane l + s          (lane-1) l + t                    [0, l), lane
//   0: empty global(g)       1            s                   t                                 [0,
//   min(g, s+1)) random, blocks  ceil(N/b)    lane b + s          list[t/b] b + t%b positions <=
//   own
//
// Intervals never move backwards within a lane, so the queries that see key t are an interval too.
// In a union a pair belongs to the first part that has it. Where what an earlier part takes away is
// a prefix or suffix of the interval it is cut off here (local + column: the column part ends one
// step back); otherwise the part is `masked` and keeps() decides pair by pair.
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

// Part number `part` of a head, at one length. Cheap to copy except for random and blocks.
class PartPlan {
 public:
  PartPlan(const HeadPattern& head, std::size_t part, std::int64_t length);

  std::int64_t lanes() const { return lanes_; }
  std::int64_t steps(std::int64_t lane) const;  // queries of the lane, tail lanes included
  std::int64_t keys(std::int64_t lane) const;   // length of the lane's key sequence
  Position query(std::int64_t lane, std::int64_t step) const;
  Position key(std::int64_t lane, std::int64_t t) const;
  Interval reach(std::int64_t lane, std::int64_t step) const;
  std::int64_t lane_of(Position i) const;
  std::int64_t step_of(Position i) const;

  // Some pair inside an interval belongs to an earlier part of the union: ask keeps().
  bool masked() const { return masked_; }
  bool keeps(Position i,
             Position j) const;  // the exact truth for this part: part, minus earlier ones

  // Whether two lanes may read the same key (then one task must own all lanes' key gradients).
  bool lanes_share_keys() const { return lanes_share_keys_; }

  // The sampler's cache of this part: position j lives in slot cache_slot(j) < cache_slots(), or
  // is not kept (-1). A slot is overwritten only when no later query reads its old position.
  std::int64_t cache_slots() const;
  std::int64_t cache_slot(Position j) const;

  std::int64_t length() const { return length_; }
  const Part& part() const { return part_; }

 private:
  Part part_;
  HeadPattern earlier_;  // the parts before this one in the union
  std::int64_t length_ = 0, lanes_ = 0;
  bool masked_ = false, lanes_share_keys_ = false;
  std::vector<std::vector<std::int64_t>> block_lists_;  // random, blocks: key blocks of each lane
  std::int64_t cut_first_ = 0;   // keys at positions < cut_first_ belong to an earlier part
  std::int64_t cut_behind_ = 0;  // keys at positions > i - cut_behind_ belong to an earlier part
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
