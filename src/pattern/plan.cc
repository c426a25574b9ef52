#include "pattern/plan.h"

#include <algorithm>

#include "base/integers.h"
#include "longstride/error.h"
#include "pattern/cuts.h"
#include "pattern/parts.h"

namespace longstride {

namespace {

std::int64_t stride_of(const Part& part) {
  if (const auto* p = std::get_if<Column>(&part)) return p->stride;
  if (const auto* p = std::get_if<Row>(&part)) return p->stride;
  if (const auto* p = std::get_if<Summary>(&part)) return p->stride;
  return std::get<PreviousRow>(part).stride;
}

void check(const Part& part) {
  if (const auto what = fault_of(part))
    throw invalid_argument("pattern: \"", to_string(part), "\": ", *what);
  if (const auto* s = std::get_if<Summary>(&part); s != nullptr && s->group < 0)
    throw invalid_argument("pattern: \"", to_string(part),
                           "\" has no group, want the one that its head gives it");
}

// First column of a summary in each block of its stride.
std::int64_t first_column(const Summary& s) { return s.stride - s.width * (s.group + 1); }

}  // namespace

PartPlan::PartPlan(const HeadPattern& head, std::size_t part, std::int64_t length)
    : part_(head.parts.at(part)), length_(length) {
  if (length < 1 || length >= kNumberLimit)
    throw invalid_argument("pattern: length is ", length, ", want 1 to ", kNumberLimit - 1);
  check(part_);
  for (std::size_t p = 0; p < part; ++p) {
    check(head.parts[p]);
    const auto* random = std::get_if<Random>(&head.parts[p]);
    cuts_.everything = cuts_.everything || covers(head.parts[p], part_);
    earlier_.parts.push_back(random != nullptr ? Part(listed(*random, length)) : head.parts[p]);
  }
  fold();
  if (!cuts_.everything) cut();
}

void PartPlan::fold() {
  if (std::holds_alternative<Column>(part_)) {
    fold_ = Fold::columns;
    size_ = stride_of(part_);
    lanes_ = std::min(size_, length_);
  } else if (std::holds_alternative<Row>(part_) || std::holds_alternative<PreviousRow>(part_)) {
    fold_ = Fold::rows;
    size_ = stride_of(part_);
    lanes_ = ceil_div(length_, size_);
  } else if (std::holds_alternative<Random>(part_) || std::holds_alternative<Blocks>(part_)) {
    const auto* random = std::get_if<Random>(&part_);
    lists_ = random != nullptr ? listed(*random, length_) : std::get<Blocks>(part_);
    fold_ = Fold::rows;
    size_ = lists_.block;
    lanes_ = ceil_div(length_, size_);
    lanes_share_keys_ = lanes_ > 1;
  }
}

// Parts that take a first or last piece of any query's positions come first; then those that do so
// only beside what is left; the rest, where it can meet what is left, needs the mask.
void PartPlan::cut() {
  std::vector<const Part*> rest;
  for (const Part& e : earlier_.parts) {
    const auto* s = std::get_if<Summary>(&e);
    if (const auto* local = std::get_if<Local>(&e)) {
      cuts_.newest = std::max(cuts_.newest, local->window);
    } else if (const auto* global = std::get_if<Global>(&e)) {
      cuts_.first = std::max(cuts_.first, global->count);
    } else if (const auto* row = std::get_if<Row>(&e)) {
      cuts_.from_row.push_back({row->stride, 0});
    } else if (s != nullptr && s->width == s->stride) {
      cuts_.before_row.push_back(s->stride);
    } else {
      if (std::holds_alternative<Column>(e)) cuts_.newest = std::max<std::int64_t>(cuts_.newest, 1);
      rest.push_back(&e);
    }
  }
  for (const Part* e : rest)
    if (!apart(*e, part_, length_) && !cut_by(*e)) masked_ = true;
}

// Whether the cuts, perhaps with one more, account for `earlier`.
bool PartPlan::cut_by(const Part& earlier) {
  if (always(
          [](const Interval& mine, const Interval& theirs) {
            return theirs.empty() || mine.end <= theirs.begin || theirs.end <= mine.begin;
          },
          earlier))
    return true;
  if (!std::holds_alternative<PreviousRow>(earlier)) return false;
  if (always([](const Interval& mine, const Interval& theirs) { return mine.end <= theirs.end; },
             earlier)) {
    cuts_.from_row.push_back({stride_of(earlier), 1});
    return true;
  }
  if (always(
          [](const Interval& mine, const Interval& theirs) { return mine.begin >= theirs.begin; },
          earlier)) {
    cuts_.before_row.push_back(stride_of(earlier));
    return true;
  }
  return false;
}

bool PartPlan::always(bool (*holds)(const Interval& mine, const Interval& theirs),
                      const Part& earlier) const {
  for (Position i = 0; i < length_; ++i) {
    const Interval mine = positions(i);
    if (!mine.empty() && !holds(mine, hull(earlier, i))) return false;
  }
  return true;
}

Interval PartPlan::positions(Position i) const {
  Interval mine = cuts_.left(i);
  if (const auto* p = std::get_if<Local>(&part_)) {
    mine.begin = std::max(mine.begin, i + 1 - p->window);
  } else if (const auto* row = std::get_if<Row>(&part_)) {
    mine.begin = std::max(mine.begin, i / row->stride * row->stride);
  } else if (const auto* s = std::get_if<Summary>(&part_)) {
    mine.end = std::min(mine.end, i / s->stride * s->stride);
  } else if (const auto* previous = std::get_if<PreviousRow>(&part_)) {
    const Position own = i / previous->stride * previous->stride;
    mine = {std::max(mine.begin, own - previous->stride), std::min(mine.end, own)};
  } else if (const auto* global = std::get_if<Global>(&part_)) {
    mine.end = std::min(mine.end, global->count);
  }
  return {std::max<Position>(0, mine.begin), std::max<Position>(0, mine.end)};
}

std::int64_t PartPlan::steps(std::int64_t lane) const {
  switch (fold_) {
    case Fold::line:
      return length_;
    case Fold::columns:
      return ceil_div(length_ - lane, size_);
    case Fold::rows:
      return std::min(size_, length_ - lane * size_);
  }
  return 0;
}

std::int64_t PartPlan::keys(std::int64_t lane) const { return keys_before(lane, length_); }

Position PartPlan::query(std::int64_t lane, std::int64_t step) const {
  switch (fold_) {
    case Fold::line:
      return step;
    case Fold::columns:
      return lane + step * size_;
    case Fold::rows:
      return lane * size_ + step;
  }
  return 0;
}

std::int64_t PartPlan::lane_of(Position i) const {
  return fold_ == Fold::line ? 0 : fold_ == Fold::columns ? i % size_ : i / size_;
}

std::int64_t PartPlan::step_of(Position i) const {
  return fold_ == Fold::line ? i : fold_ == Fold::columns ? i / size_ : i % size_;
}

Position PartPlan::key(std::int64_t lane, std::int64_t t) const {
  if (fold_ == Fold::columns) return lane + t * size_;
  if (lists_.rows != nullptr)
    return (*lists_.rows)[static_cast<std::size_t>(lane)][static_cast<std::size_t>(t / size_)] *
               size_ +
           t % size_;
  if (const auto* s = std::get_if<Summary>(&part_))
    return t / s->width * s->stride + first_column(*s) + t % s->width;
  if (std::holds_alternative<PreviousRow>(part_)) return (lane - 1) * size_ + t;
  return lane * size_ + t;  // the lane of a line is 0
}

std::int64_t PartPlan::keys_before(std::int64_t lane, Position x) const {
  x = std::clamp<Position>(x, 0, length_);
  if (fold_ == Fold::columns) return x <= lane ? 0 : ceil_div(x - lane, size_);
  if (lists_.rows != nullptr) {
    if (lane >= static_cast<std::int64_t>(lists_.rows->size())) return 0;
    const std::vector<std::int64_t>& list = (*lists_.rows)[static_cast<std::size_t>(lane)];
    const auto it = std::lower_bound(list.begin(), list.end(), x / size_);
    const bool inside = it != list.end() && *it == x / size_;
    return (it - list.begin()) * size_ + (inside ? x % size_ : 0);
  }
  if (const auto* s = std::get_if<Summary>(&part_)) {
    x = std::min(x, (length_ - 1) / s->stride * s->stride);  // nobody sees the last block
    return x / s->stride * s->width +
           std::clamp<std::int64_t>(x % s->stride - first_column(*s), 0, s->width);
  }
  if (const auto* g = std::get_if<Global>(&part_)) return std::min(x, g->count);
  if (std::holds_alternative<PreviousRow>(part_))
    return lane == 0 ? 0 : std::clamp<std::int64_t>(x - (lane - 1) * size_, 0, size_);
  if (fold_ == Fold::rows) return std::clamp<std::int64_t>(x - lane * size_, 0, size_);
  return x;
}

Interval PartPlan::reach(std::int64_t lane, std::int64_t step) const {
  const Interval seen = positions(query(lane, step));
  const std::int64_t begin = keys_before(lane, seen.begin);
  return {begin, std::max(begin, keys_before(lane, seen.end))};
}

bool PartPlan::even() const {
  const bool own = std::holds_alternative<Dense>(part_) || std::holds_alternative<Local>(part_) ||
                   std::holds_alternative<Column>(part_) || std::holds_alternative<Row>(part_);
  return own && cuts_.from_row.empty() && cuts_.before_row.empty();
}

bool PartPlan::keeps(Position i, Position j) const {
  if (cuts_.everything) return false;
  const bool own = lists_.rows != nullptr ? lists_.attends(i, j) : attends(part_, i, j);
  return own && !earlier_.attends(i, j);
}

std::int64_t PartPlan::cache_slots() const {
  if (cuts_.everything) return 0;
  if (const auto* p = std::get_if<Local>(&part_)) return std::min(p->window, length_);
  if (std::holds_alternative<Row>(part_)) return std::min(size_, length_);
  if (std::holds_alternative<PreviousRow>(part_))
    return std::min<std::int64_t>(2, lanes_ - 1) * size_;
  if (fold_ == Fold::columns) return lanes_ * ceil_div(length_, size_);
  return fold_ == Fold::line ? keys(0) : length_;
}

std::int64_t PartPlan::cache_slot(Position j) const {
  if (cuts_.everything) return -1;
  if (const auto* p = std::get_if<Local>(&part_)) return j % std::min(p->window, length_);
  if (std::holds_alternative<Row>(part_)) return j % size_;
  if (std::holds_alternative<PreviousRow>(part_))
    return j / size_ < lanes_ - 1 ? j % (2 * size_) : -1;
  if (fold_ == Fold::columns) return j % size_ * ceil_div(length_, size_) + j / size_;
  if (const auto* s = std::get_if<Summary>(&part_)) {
    const std::int64_t column = j % s->stride - first_column(*s);
    const bool kept = column >= 0 && column < s->width && j / s->stride < (length_ - 1) / s->stride;
    return kept ? j / s->stride * s->width + column : -1;
  }
  if (const auto* g = std::get_if<Global>(&part_)) return j < g->count ? j : -1;
  return j;
}

AttentionPlan::AttentionPlan(const std::vector<HeadPattern>& heads, std::int64_t plan_length)
    : length(plan_length) {
  for (const HeadPattern& head : heads) {
    const auto same = std::find_if(patterns.begin(), patterns.end(),
                                   [&](const HeadPattern& p) { return p.parts == head.parts; });
    kind_of_head.push_back(same - patterns.begin());
    if (same != patterns.end()) continue;
    patterns.push_back(head);
    HeadPlan plan;
    for (std::size_t p = 0; p < head.parts.size(); ++p) plan.parts.emplace_back(head, p, length);
    kinds.push_back(std::move(plan));
  }
}

}  // namespace longstride
