#include "pattern/work.h"

#include <algorithm>
#include <vector>

#include "base/threads.h"
#include "longstride/error.h"

namespace longstride {

namespace {

// Adds up tiles of `block` key indices under the steps of one tile of queries.
class TileRow {
 public:
  explicit TileRow(std::int64_t block) : block_(block) {}

  // Intervals come in order of their steps, so a new one can only touch tiles from the last on.
  void add(const Interval& seen) {
    if (seen.empty()) return;
    const std::int64_t first = std::max(seen.begin / block_, next_),
                       end = (seen.end - 1) / block_ + 1;
    count_ += std::max<std::int64_t>(0, end - first);
    next_ = std::max(next_, end);
  }

  std::int64_t count() const { return count_; }

 private:
  std::int64_t block_, next_ = 0, count_ = 0;
};

struct Counts {
  std::int64_t pairs = 0, blocks = 0;
};

// The kept pairs of one tile of queries; kept[i] grows by those of query i.
Counts count_tile(const PartPlan& part, std::int64_t lane, const Interval& steps,
                  std::int64_t block, std::vector<std::int64_t>& kept) {
  Counts sum;
  TileRow tiles(block);
  std::vector<bool> touched;  // masked: the key tiles from that of the first key on
  const std::int64_t first_tile = part.reach(lane, steps.begin).begin / block;
  for (std::int64_t step = steps.begin; step < steps.end; ++step) {
    const Interval seen = part.reach(lane, step);
    const Position i = part.query(lane, step);
    std::int64_t count = seen.size();
    if (part.masked()) {
      count = 0;
      for (std::int64_t t = seen.begin; t < seen.end; ++t) {
        if (!part.keeps(i, part.key(lane, t))) continue;
        ++count;
        const auto tile = static_cast<std::size_t>(t / block - first_tile);
        if (tile >= touched.size()) touched.resize(tile + 1);
        touched[tile] = true;
      }
    } else {
      tiles.add(seen);
    }
    sum.pairs += count;
    kept[static_cast<std::size_t>(i)] += count;
  }
  sum.blocks = tiles.count() + std::count(touched.begin(), touched.end(), true);
  return sum;
}

Counts count_part(const PartPlan& part, std::int64_t block, std::vector<std::int64_t>& kept) {
  struct Tile {
    std::int64_t lane;
    Interval steps;
  };
  std::vector<Tile> tiles;
  for (std::int64_t lane = 0; lane < part.lanes(); ++lane) {
    const std::int64_t steps = part.steps(lane);
    for (std::int64_t s = 0; s < steps; s += block)
      tiles.push_back({lane, {s, std::min(s + block, steps)}});
  }
  std::vector<Counts> counts(tiles.size());
  constexpr std::int64_t kTilesATask = 256;  // starting threads for less costs more than it saves
  parallel_ranges(static_cast<std::int64_t>(tiles.size()), kTilesATask,
                  [&](std::int64_t begin, std::int64_t end) {
                    for (auto t = static_cast<std::size_t>(begin);
                         t < static_cast<std::size_t>(end); ++t)
                      counts[t] = count_tile(part, tiles[t].lane, tiles[t].steps, block, kept);
                  });
  Counts sum;
  for (const Counts& c : counts) sum = {sum.pairs + c.pairs, sum.blocks + c.blocks};
  return sum;
}

// Slots are never given back, so the last position finds the most of them in use.
std::int64_t used_slots(const PartPlan& part) {
  std::vector<bool> used(static_cast<std::size_t>(part.cache_slots()));
  for (Position j = 0; j < part.length(); ++j)
    if (const std::int64_t slot = part.cache_slot(j); slot >= 0)
      used[static_cast<std::size_t>(slot)] = true;
  return std::count(used.begin(), used.end(), true);
}

}  // namespace

HeadWork count_work(const HeadPlan& head, std::int64_t length, std::int64_t block) {
  if (block < 1) throw invalid_argument("count_work: block is ", block, ", want at least 1");
  HeadWork work;
  std::vector<std::int64_t> kept(static_cast<std::size_t>(length));
  for (const PartPlan& part : head.parts) {
    const Counts counts = count_part(part, block, kept);
    work.pairs += counts.pairs;
    work.blocks += counts.blocks;
    work.cache_keys += used_slots(part);
  }
  work.read_keys = kept.empty() ? 0 : *std::max_element(kept.begin(), kept.end());
  const double n = static_cast<double>(length);
  work.density = static_cast<double>(work.pairs) / (n * (n + 1) / 2);
  return work;
}

HeadCost cost(std::int64_t pairs, std::int64_t length, std::int64_t qk_width, std::int64_t v_width,
              std::int64_t bytes_per_value) {
  const auto p = static_cast<double>(pairs), qk = static_cast<double>(qk_width),
             v = static_cast<double>(v_width);
  const double row = static_cast<double>(length) * static_cast<double>(bytes_per_value);
  return {2 * (qk + v) * p, 2 * (3 * qk + 2 * v) * p,
          row * (2 * qk + 2 * v),   // q, k, v, out
          row * (4 * qk + 4 * v)};  // q, k, v, out, dout, dq, dk, dv
}

}  // namespace longstride
