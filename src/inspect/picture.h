// A mask as a grid of cells, the common ground of the drawings in text and PNG.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "longstride/inspect.h"
#include "pattern/plan.h"

namespace longstride {

// Queries down, keys across, `size` positions a cell; the last cell may be cut short.
struct Grid {
  std::int64_t length = 1, size = 1, cells = 1;

  // At most `most` cells a side. The size is a power of two, so that cells line up with the usual
  // strides and no false stripes show.
  Grid(std::int64_t length, std::int64_t most);
  std::size_t index(std::int64_t row, std::int64_t column) const {
    return static_cast<std::size_t>(row * cells + column);
  }
};

// The share of the causal pairs of each cell that a part keeps, [cells * cells]. Exact up to 64
// positions a cell; above, from 64 queries of each cell row (a masked part: 16 queries, 8 keys a
// cell), so that the cost depends on the cells and not on the length.
std::vector<float> cell_shares(const PartPlan& part, const Grid& grid);

struct PanelPart {
  std::string name;
  std::size_t colour = 0;     // the same for the same part in every panel
  std::vector<float> shares;  // [cells * cells]
};

// One kind of head, or all heads drawn over each other.
struct Panel {
  std::string title;
  std::vector<PanelPart> parts;

  double share(std::size_t cell) const;  // of all parts together
};

struct Picture {
  std::string spec;
  Grid grid;
  std::vector<Panel> panels;
};

// Panels of the first `most_kinds` kinds of heads, then, where there are several, the merged one.
Picture make_picture(const PatternOptions& options, std::int64_t most_cells,
                     std::size_t most_kinds);

// How dark a share looks, 0 to 1: the darkness rises steeply, so that one pair in a thousand shows.
double ink(double share);

// Checks the options and plans one head of each kind.
AttentionPlan plan_of(const PatternOptions& options);

}  // namespace longstride
