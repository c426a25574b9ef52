#include "pattern/cuts.h"

#include <algorithm>
#include <numeric>

#include "longstride/error.h"

namespace longstride {

namespace {

struct Hull {
  Position i;
  Interval operator()(const Dense&) const { return {0, i + 1}; }
  Interval operator()(const Local& p) const {
    return {std::max<Position>(0, i + 1 - p.window), i + 1};
  }
  Interval operator()(const Column& p) const { return {i % p.stride, i - p.stride + 1}; }
  Interval operator()(const Row& p) const { return {i / p.stride * p.stride, i + 1}; }
  Interval operator()(const Summary& p) const {
    const std::int64_t first = p.stride - p.width * (p.group + 1), row = i / p.stride;
    return {std::min(first, row * p.stride),
            std::max<Position>(0, (row - 1) * p.stride + first + p.width)};
  }
  Interval operator()(const PreviousRow& p) const {
    const Position own = i / p.stride * p.stride;
    return {std::max<Position>(0, own - p.stride), own};
  }
  Interval operator()(const Global& p) const { return {0, std::min(p.count, i + 1)}; }
  Interval operator()(const Random&) const { return {0, i + 1}; }
  Interval operator()(const Blocks& p) const {
    const std::int64_t q = i / p.block;
    if (q >= static_cast<std::int64_t>(p.rows->size())) return {};
    const std::vector<std::int64_t>& keys = (*p.rows)[static_cast<std::size_t>(q)];
    if (keys.empty()) return {};
    return {keys.front() * p.block, std::min((keys.back() + 1) * p.block, i + 1)};
  }
};

}  // namespace

Interval Cuts::left(Position i) const {
  if (everything) return {};
  Interval left = {first, i + 1 - newest};
  for (const RowCut& cut : from_row)
    left.end = std::min(left.end, (i / cut.stride - cut.back) * cut.stride);
  for (const std::int64_t stride : before_row)
    left.begin = std::max(left.begin, i / stride * stride);
  return left;
}

Interval hull(const Part& part, Position i) { return std::visit(Hull{i}, part); }

bool covers(const Part& earlier, const Part& part) {
  if (std::holds_alternative<Dense>(earlier) || earlier == part) return true;
  if (const auto* a = std::get_if<Column>(&earlier), *b = std::get_if<Column>(&part); a && b)
    return b->stride % a->stride == 0;
  if (const auto* a = std::get_if<Summary>(&earlier), *b = std::get_if<Summary>(&part); a && b)
    return a->stride == b->stride && a->width * a->group <= b->width * b->group &&
           a->width * (a->group + 1) >= b->width * (b->group + 1);
  return false;
}

bool apart(const Part& earlier, const Part& part, std::int64_t length) {
  if (const auto* a = std::get_if<Column>(&earlier), *b = std::get_if<Column>(&part); a && b)
    return a->stride / std::gcd(a->stride, b->stride) > (length - 1) / b->stride;
  if (const auto* a = std::get_if<Summary>(&earlier), *b = std::get_if<Summary>(&part); a && b)
    return a->stride == b->stride && (a->width * (a->group + 1) <= b->width * b->group ||
                                      b->width * (b->group + 1) <= a->width * a->group);
  return false;
}

Blocks listed(const Random& part, std::int64_t length) {
  constexpr std::int64_t kMaxEntries = std::int64_t{1} << 26;
  const std::int64_t blocks = (length - 1) / part.block + 1;
  if (blocks > kMaxEntries / std::min(part.count, blocks))
    throw invalid_argument("pattern: \"", to_string(Part(part)), "\" needs ", blocks,
                           " lists of key blocks at length ", length, ", want at most ",
                           kMaxEntries, " entries: take larger blocks");
  std::vector<std::vector<std::int64_t>> rows;
  rows.reserve(static_cast<std::size_t>(blocks));
  for (std::int64_t q = 0; q < blocks; ++q) rows.push_back(part.key_blocks(q));
  return {"", part.block,
          std::make_shared<const std::vector<std::vector<std::int64_t>>>(std::move(rows))};
}

}  // namespace longstride
