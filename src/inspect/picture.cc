#include "inspect/picture.h"

#include <algorithm>
#include <cmath>

#include "base/threads.h"
#include "longstride/error.h"

namespace longstride {

namespace {

// Every `of`-th piece of [begin, end) gives one position, inside it by the golden ratio, so that
// samples do not fall into step with a stride.
std::vector<Position> sample(Position begin, Position end, std::int64_t of) {
  const std::int64_t size = end - begin, count = std::min(size, of);
  constexpr double kGolden = 0.6180339887498949;
  std::vector<Position> out;
  for (std::int64_t k = 0; k < count; ++k) {
    const std::int64_t low = begin + size * k / count, high = begin + size * (k + 1) / count;
    const double turn = static_cast<double>(k) * kGolden;
    out.push_back(low + static_cast<std::int64_t>((turn - std::floor(turn)) *
                                                  static_cast<double>(high - low)));
  }
  return out;
}

constexpr std::int64_t kQueries = 64, kMaskedQueries = 16, kMaskedKeys = 8;  // a cell

// Keys with indices in `seen` that i keeps.
double kept_keys(const PartPlan& part, Position i, std::int64_t lane, const Interval& seen,
                 bool sampled) {
  if (seen.empty()) return 0;
  if (!part.masked()) return static_cast<double>(seen.size());
  const std::vector<std::int64_t> keys =
      sample(seen.begin, seen.end, sampled ? kMaskedKeys : seen.size());
  const auto kept = std::count_if(keys.begin(), keys.end(),
                                  [&](std::int64_t t) { return part.keeps(i, part.key(lane, t)); });
  return static_cast<double>(seen.size() * kept) / static_cast<double>(keys.size());
}

void fill_row(const PartPlan& part, const Grid& grid, std::int64_t row,
              std::vector<float>& shares) {
  const bool sampled = part.masked() && grid.size > kQueries;
  const Position top = row * grid.size, bottom = std::min(top + grid.size, grid.length);
  const auto queries = sample(top, bottom, sampled ? kMaskedQueries : kQueries);
  std::vector<double> kept(static_cast<std::size_t>(row + 1));
  double own_pairs = 0;  // causal pairs in the cell on the diagonal
  for (const Position i : queries) {
    own_pairs += static_cast<double>(i - top + 1);
    const std::int64_t lane = part.lane_of(i);
    const Interval seen = part.reach(lane, part.step_of(i));
    if (seen.empty()) continue;
    const std::int64_t first = part.key(lane, seen.begin) / grid.size,
                       last = part.key(lane, seen.end - 1) / grid.size;
    std::int64_t begin = seen.begin;
    for (std::int64_t column = first; column <= last; ++column) {
      const std::int64_t end = std::min(seen.end, part.keys_before(lane, (column + 1) * grid.size));
      kept[static_cast<std::size_t>(column)] += kept_keys(part, i, lane, {begin, end}, sampled);
      begin = std::max(begin, end);
    }
  }
  const double pairs = static_cast<double>(grid.size) * static_cast<double>(queries.size());
  for (std::int64_t column = 0; column <= row; ++column)
    shares[grid.index(row, column)] = static_cast<float>(kept[static_cast<std::size_t>(column)] /
                                                         (column == row ? own_pairs : pairs));
}

std::string name_heads(const std::vector<std::int64_t>& heads) {
  const std::int64_t first = heads.front(), last = heads.back();
  const auto count = static_cast<std::int64_t>(heads.size());
  if (count == 1) return text("head ", first);
  if (last - first + 1 == count) return text("heads ", first, "-", last);
  return text(count, " heads: ", first, ", ", heads[1], count > 2 ? ", ..." : "");
}

// Summaries of all groups are one part to the eye.
std::string family(const Part& part) {
  if (const auto* s = std::get_if<Summary>(&part))
    return to_string(Part(Summary{s->stride, s->width, -1}));
  return to_string(part);
}

class Palette {
 public:
  std::size_t colour(const std::string& name) {
    const auto known = std::find(names_.begin(), names_.end(), name);
    const auto index = static_cast<std::size_t>(known - names_.begin());
    if (known == names_.end()) names_.push_back(name);
    return index;
  }

 private:
  std::vector<std::string> names_;
};

Panel kind_panel(const AttentionPlan& plan, std::size_t kind, const Grid& grid, Palette& palette) {
  std::vector<std::int64_t> heads;
  for (std::size_t h = 0; h < plan.kind_of_head.size(); ++h)
    if (plan.kind_of_head[h] == static_cast<std::int64_t>(kind))
      heads.push_back(static_cast<std::int64_t>(h));
  Panel panel{name_heads(heads), {}};
  for (const PartPlan& part : plan.kinds[kind].parts)
    panel.parts.push_back(
        {to_string(part.part()), palette.colour(family(part.part())), cell_shares(part, grid)});
  return panel;
}

// All heads drawn over each other.
class Merged {
 public:
  Merged(std::string title, const Grid& grid)
      : panel_{std::move(title), {}}, filled_(static_cast<std::size_t>(grid.cells * grid.cells)) {}

  // As in a union, what several heads have counts once, for the first.
  void add(const Panel& panel, const std::vector<PartPlan>& plans) {
    for (std::size_t p = 0; p < panel.parts.size(); ++p) {
      const PanelPart& part = panel.parts[p];
      PanelPart& own = part_of_colour(part.colour, family(plans[p].part()));
      for (std::size_t cell = 0; cell < filled_.size(); ++cell) {
        const float more = std::min(part.shares[cell], 1 - filled_[cell]);
        own.shares[cell] += more;
        filled_[cell] += more;
      }
    }
  }

  Panel take() { return std::move(panel_); }

 private:
  PanelPart& part_of_colour(std::size_t colour, const std::string& name) {
    for (PanelPart& part : panel_.parts)
      if (part.colour == colour) return part;
    return panel_.parts.emplace_back(PanelPart{name, colour, std::vector<float>(filled_.size())});
  }

  Panel panel_;
  std::vector<float> filled_;
};

}  // namespace

Grid::Grid(std::int64_t whole, std::int64_t most) : length(whole) {
  while ((length - 1) / size + 1 > most) size *= 2;
  cells = (length - 1) / size + 1;
}

std::vector<float> cell_shares(const PartPlan& part, const Grid& grid) {
  std::vector<float> shares(static_cast<std::size_t>(grid.cells * grid.cells));
  constexpr std::int64_t kRowsATask = 64;
  parallel_ranges(grid.cells, kRowsATask, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t row = begin; row < end; ++row) fill_row(part, grid, row, shares);
  });
  return shares;
}

double Panel::share(std::size_t cell) const {
  double sum = 0;
  for (const PanelPart& part : parts) sum += static_cast<double>(part.shares[cell]);
  return std::min(1.0, sum);
}

double ink(double share) {
  if (share <= 0) return 0;
  constexpr double kFaintest = 0.25, kPower = 0.4;
  return kFaintest + (1 - kFaintest) * std::pow(share, kPower);
}

Picture make_picture(const PatternOptions& options, std::int64_t most_cells,
                     std::size_t most_kinds) {
  const AttentionPlan plan = plan_of(options);
  Picture picture{options.spec, Grid(options.length, most_cells), {}};
  Palette palette;
  const std::size_t kinds = std::min(most_kinds, plan.kinds.size());
  Merged all(kinds == plan.kinds.size()
                 ? "all heads"
                 : text("the first ", kinds, " kinds of ", plan.kinds.size()),
             picture.grid);
  for (std::size_t kind = 0; kind < kinds; ++kind) {
    picture.panels.push_back(kind_panel(plan, kind, picture.grid, palette));
    all.add(picture.panels.back(), plan.kinds[kind].parts);
  }
  if (plan.kinds.size() > 1) picture.panels.push_back(all.take());
  return picture;
}

}  // namespace longstride
