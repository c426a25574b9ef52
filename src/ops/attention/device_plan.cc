#include "ops/attention/device_plan.h"

#include <algorithm>
#include <functional>
#include <map>
#include <type_traits>

#include "base/integers.h"
#include "longstride/error.h"

namespace longstride::ops::cuda {

namespace {

// Numbers of a pattern may be far beyond any position.
std::int32_t clamped(std::int64_t x) {
  return static_cast<std::int32_t>(std::min<std::int64_t>(x, kPositionLimit));
}

void add_edge(DevicePart& part, bool begins, std::int64_t stride, std::int64_t back) {
  RowEdge* const begin = part.edges + (begins ? 0 : part.begin_edges);
  RowEdge* const end = part.edges + (begins ? part.begin_edges : part.edges_end);
  const RowEdge edge{divider(stride), static_cast<std::int32_t>(back)};
  if (std::any_of(begin, end, [&](const RowEdge& e) {
        return e.stride.by == edge.stride.by && e.back == edge.back;
      }))
    return;
  if (part.edges_end == kMaxEdges)
    throw invalid_argument("attention: a union cuts a part at more than ", kMaxEdges, " edges");
  std::copy_backward(end, part.edges + part.edges_end, part.edges + part.edges_end + 1);
  *end = edge;
  part.begin_edges += begins;
  ++part.edges_end;
}

void describe(const Part& from, DevicePart& part) {
  std::visit(
      [&](const auto& p) {
        using T = std::decay_t<decltype(p)>;
        if constexpr (std::is_same_v<T, Dense>) {
          part.type = PartType::dense;
        } else if constexpr (std::is_same_v<T, Local>) {
          part.type = PartType::local;
          part.window = clamped(p.window);
        } else if constexpr (std::is_same_v<T, Column>) {
          part.type = PartType::column;
          part.fold = divider(p.stride);
        } else if constexpr (std::is_same_v<T, Row>) {
          part.type = PartType::row;
          part.fold = divider(p.stride);
          add_edge(part, true, p.stride, 0);
        } else if constexpr (std::is_same_v<T, Summary>) {
          part.type = PartType::summary;
          part.fold = divider(p.stride);
          part.summary_width = divider(p.width);
          part.summary_first = clamped(p.stride - p.width * (p.group + 1));
          add_edge(part, false, p.stride, 0);
        } else if constexpr (std::is_same_v<T, PreviousRow>) {
          part.type = PartType::previous_row;
          part.fold = divider(p.stride);
          add_edge(part, true, p.stride, 1);
          add_edge(part, false, p.stride, 0);
        } else if constexpr (std::is_same_v<T, Global>) {
          part.type = PartType::global;
          part.first_end = clamped(p.count);
        } else {
          part.type = PartType::listed;
        }
      },
      from);
}

// Where the parts' pointers are, as offsets into the lists.
constexpr const std::int32_t* DevicePart::*kPointers[] = {
    &DevicePart::offsets, &DevicePart::blocks, &DevicePart::seen_offsets, &DevicePart::seen_lane,
    &DevicePart::seen_slot};

// Appends the lists of a part and their reverse; at[n]: where kPointers[n] begins.
void append_lists(const PartPlan& plan, DevicePart& part, std::vector<std::int32_t>& lists,
                  std::size_t (&at)[5]) {
  const std::int64_t block = plan.lists().block;
  const auto& rows = *plan.lists().rows;
  const auto lanes = static_cast<std::size_t>(ceil_div(plan.length(), block));
  part.fold = divider(block);
  part.lanes = static_cast<std::int32_t>(lanes);

  std::vector<std::int32_t> offsets(lanes + 1), blocks, seen_offsets(lanes + 1);
  for (std::size_t q = 0; q < lanes; ++q) {
    if (q < rows.size())
      for (const std::int64_t k : rows[q]) {
        blocks.push_back(static_cast<std::int32_t>(k));
        ++seen_offsets[static_cast<std::size_t>(k) + 1];
      }
    offsets[q + 1] = static_cast<std::int32_t>(blocks.size());
  }
  for (std::size_t k = 0; k < lanes; ++k) seen_offsets[k + 1] += seen_offsets[k];
  std::vector<std::int32_t> seen_lane(blocks.size()), seen_slot(blocks.size()),
      next(seen_offsets.begin(), seen_offsets.end() - 1);
  for (std::size_t q = 0; q < lanes; ++q)
    for (std::int32_t n = offsets[q]; n < offsets[q + 1]; ++n) {
      const auto to = static_cast<std::size_t>(
          next[static_cast<std::size_t>(blocks[static_cast<std::size_t>(n)])]++);
      seen_lane[to] = static_cast<std::int32_t>(q);
      seen_slot[to] = n - offsets[q];
    }

  std::size_t a = 0;
  for (const auto* list : {&offsets, &blocks, &seen_offsets, &seen_lane, &seen_slot}) {
    at[a++] = lists.size();
    lists.insert(lists.end(), list->begin(), list->end());
  }
}

DevicePart make_part(const PartPlan& plan, std::size_t number) {
  DevicePart part;
  part.number = static_cast<std::int32_t>(number);
  part.masked = plan.masked();
  describe(plan.part(), part);
  const Cuts& cuts = plan.cuts();
  part.first = clamped(cuts.first);
  part.newest = clamped(cuts.newest);
  for (const Cuts::RowCut& cut : cuts.from_row) add_edge(part, false, cut.stride, cut.back);
  for (const std::int64_t stride : cuts.before_row) add_edge(part, true, stride, 0);
  return part;
}

std::int32_t only_part(const HeadPass& pass, const std::vector<DevicePart>& parts) {
  std::int32_t only = -1;
  for (std::int32_t p = pass.first_part; p < pass.first_part + pass.parts; ++p) {
    const DevicePart& part = parts[static_cast<std::size_t>(p)];
    if (part.pass != pass.pass) continue;
    if (only >= 0 || part.type == PartType::summary || part.type == PartType::listed) return -1;
    only = p;
  }
  return only;
}

// Keys per query of one pass, from some queries spread over the sequence.
double mean_keys(const HeadPass& pass, const std::vector<DevicePart>& parts, std::int64_t length) {
  constexpr std::int64_t kSamples = 61;
  double sum = 0;
  for (std::int64_t n = 0; n < kSamples; ++n) {
    const auto i = static_cast<std::int32_t>((2 * n + 1) * length / (2 * kSamples));
    TileWalk walk(parts.data() + pass.first_part, pass.parts, pass.pass, i, i);
    while (walk.next()) sum += walk.keys.end - walk.keys.begin;
  }
  return sum / kSamples;
}

}  // namespace

Divider divider(std::int64_t by) {
  Divider d;
  d.by = clamped(by);
  int log = 0;
  while ((std::int64_t{1} << log) < d.by) ++log;
  d.shift = 31 + log;
  d.magic = static_cast<std::uint32_t>(
      ((std::uint64_t{1} << d.shift) + static_cast<std::uint64_t>(d.by) - 1) /
      static_cast<std::uint64_t>(d.by));
  return d;
}

PlanTables::PlanTables(const AttentionPlan& plan)
    : length(plan.length), heads(static_cast<std::int64_t>(plan.kind_of_head.size())) {
  if (length < 1 || length >= kPositionLimit)
    throw invalid_argument("attention: length is ", length, ", want 1 to ", kPositionLimit - 1,
                           " on a GPU");
  std::vector<std::size_t> offsets;  // of the kPointers of each listed part
  std::vector<std::int32_t> first_part;
  for (const HeadPlan& kind : plan.kinds) {
    first_part.push_back(static_cast<std::int32_t>(parts.size()));
    for (std::size_t p = 0; p < kind.parts.size(); ++p) {
      parts.push_back(make_part(kind.parts[p], p));
      if (parts.back().type != PartType::listed) continue;
      std::size_t at[5];
      append_lists(kind.parts[p], parts.back(), lists, at);
      offsets.insert(offsets.end(), at, at + 5);
    }
  }
  auto offset = offsets.begin();
  for (DevicePart& part : parts)
    if (part.type == PartType::listed)
      for (const auto pointer : kPointers) part.*pointer = lists.data() + *offset++;

  // Columns come first: the line, read in order, is the better one to merge into.
  std::map<std::pair<std::int32_t, std::int32_t>, PassGroup> columns;  // [pass, stride]
  PassGroup line;
  for (std::size_t h = 0; h < plan.kind_of_head.size(); ++h) {
    const auto kind = static_cast<std::size_t>(plan.kind_of_head[h]);
    const auto& kind_parts = plan.kinds[kind].parts;
    HeadPass pass{static_cast<std::int32_t>(h), first_part[kind],
                  static_cast<std::int32_t>(kind_parts.size()), 0, 0};
    bool has_line = false;
    for (std::size_t p = 0; p < kind_parts.size(); ++p) {
      DevicePart& part = parts[static_cast<std::size_t>(pass.first_part) + p];
      if (kind_parts[p].cuts().everything) continue;
      if (part.type != PartType::column) {
        has_line = true;
        continue;
      }
      part.pass = pass.pass;
      pass.merges = pass.pass > 0;
      PassGroup& group = columns[{pass.pass, part.fold.by}];
      group.stride = part.fold.by;
      group.heads.push_back(pass);
      ++pass.pass;
    }
    if (!has_line) continue;
    for (std::size_t p = 0; p < kind_parts.size(); ++p) {
      DevicePart& part = parts[static_cast<std::size_t>(pass.first_part) + p];
      if (!kind_parts[p].cuts().everything && part.type != PartType::column) part.pass = pass.pass;
    }
    pass.merges = pass.pass > 0;
    line.heads.push_back(pass);
  }
  for (auto& [key, group] : columns) groups.push_back(std::move(group));
  if (!line.heads.empty()) groups.push_back(std::move(line));
  for (PassGroup& group : groups) {
    for (HeadPass& pass : group.heads) pass.only_part = only_part(pass, parts);
    group.even = std::all_of(group.heads.begin(), group.heads.end(),
                             [](const HeadPass& pass) { return pass.only_part >= 0; });
    for (const HeadPass& pass : group.heads) group.keys_per_query += mean_keys(pass, parts, length);
    group.keys_per_query /= static_cast<double>(group.heads.size());
  }
}

std::vector<DevicePart> PlanTables::parts_at(const std::int32_t* lists_at) const {
  std::vector<DevicePart> moved = parts;
  for (DevicePart& part : moved)
    if (part.type == PartType::listed)
      for (const auto pointer : kPointers)
        part.*pointer = lists_at + (part.*pointer - lists.data());
  return moved;
}

}  // namespace longstride::ops::cuda
