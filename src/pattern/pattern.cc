// The truth of the parts that need more than one line, their spelling, and the heads of a layer.
#include "longstride/pattern.h"

#include <algorithm>
#include <numeric>
#include <set>

#include "base/rng.h"
#include "longstride/error.h"
#include "pattern/parts.h"

namespace longstride {

namespace {

constexpr std::int64_t kMaxHeads = 65536;

// Draw number `draw` of a query block: uniform in [0, count), count < 2^40 so that the product
// keeps 13 bits more than it needs. One Random4 holds two draws.
std::int64_t draw_below(std::int64_t count, std::uint64_t seed, std::int64_t query_block,
                        std::int64_t draw) {
  constexpr std::int64_t kLanes = std::int64_t{1} << 20;
  const std::int64_t pair = draw / 2;
  const Random4 r =
      random4(seed, Stream::pattern, static_cast<std::uint64_t>(pair / kLanes),
              static_cast<std::uint64_t>(query_block), static_cast<std::uint32_t>(pair % kLanes));
  const double u = draw % 2 == 0 ? uniform(r[0], r[1]) : uniform(r[2], r[3]);
  return static_cast<std::int64_t>(u * static_cast<double>(count));
}

struct Spelling {
  std::string operator()(const Dense&) const { return "dense"; }
  std::string operator()(const Local& p) const { return text("local(", p.window, ")"); }
  std::string operator()(const Column& p) const { return text("column(", p.stride, ")"); }
  std::string operator()(const Row& p) const { return text("row(", p.stride, ")"); }
  std::string operator()(const Summary& p) const {
    if (p.group < 0) return text("summary(", p.stride, ", ", p.width, ")");
    return text("summary(", p.stride, ", ", p.width, ", ", p.group, ")");
  }
  std::string operator()(const PreviousRow& p) const {
    return text("previous_row(", p.stride, ")");
  }
  std::string operator()(const Global& p) const { return text("global(", p.count, ")"); }
  std::string operator()(const Random& p) const {
    return text("random(", p.count, ", ", p.seed, ", ", p.block, ")");
  }
  std::string operator()(const Blocks& p) const { return text("blocks(", p.file, ")"); }
};

}  // namespace

// Floyd's sampling: `wanted` distinct numbers below `blocks` with `wanted` draws.
std::vector<std::int64_t> Random::key_blocks(std::int64_t query_block) const {
  const std::int64_t blocks = query_block + 1, wanted = std::min(count, blocks);
  if (wanted == blocks) {
    std::vector<std::int64_t> all(static_cast<std::size_t>(blocks));
    std::iota(all.begin(), all.end(), std::int64_t{0});
    return all;
  }
  std::set<std::int64_t> chosen;
  for (std::int64_t draw = 0; draw < wanted; ++draw) {
    const std::int64_t last = blocks - wanted + draw;
    if (!chosen.insert(draw_below(last + 1, seed, query_block, draw)).second) chosen.insert(last);
  }
  return {chosen.begin(), chosen.end()};
}

bool Random::attends(Position i, Position j) const {
  if (j > i) return false;
  if (i / block < count) return true;
  const std::vector<std::int64_t> keys = key_blocks(i / block);
  return std::binary_search(keys.begin(), keys.end(), j / block);
}

bool Blocks::attends(Position i, Position j) const {
  if (j > i || i / block >= static_cast<std::int64_t>(rows->size())) return false;
  const std::vector<std::int64_t>& keys = (*rows)[static_cast<std::size_t>(i / block)];
  return std::binary_search(keys.begin(), keys.end(), j / block);
}

bool Blocks::operator==(const Blocks& other) const {
  return block == other.block &&
         (rows == other.rows || (rows != nullptr && other.rows != nullptr && *rows == *other.rows));
}

bool attends(const Part& part, Position i, Position j) {
  return std::visit([&](const auto& p) { return p.attends(i, j); }, part);
}

bool HeadPattern::attends(Position i, Position j) const {
  return std::any_of(parts.begin(), parts.end(),
                     [&](const Part& part) { return longstride::attends(part, i, j); });
}

std::string to_string(const Part& part) { return std::visit(Spelling{}, part); }

std::string to_string(const HeadPattern& head) {
  std::string out = head.weight == 1 ? "" : text(head.weight, "*");
  for (std::size_t p = 0; p < head.parts.size(); ++p)
    out += (p == 0 ? "" : " + ") + to_string(head.parts[p]);
  return out;
}

std::string to_string(const LayerPattern& layer) {
  std::string out;
  for (std::size_t k = 0; k < layer.kinds.size(); ++k)
    out += (k == 0 ? "" : ", ") + to_string(layer.kinds[k]);
  return out;
}

std::int64_t LayerPattern::weights() const {
  return std::accumulate(
      kinds.begin(), kinds.end(), std::int64_t{0},
      [](std::int64_t sum, const HeadPattern& kind) { return sum + kind.weight; });
}

std::vector<HeadPattern> LayerPattern::heads(std::int64_t heads) const {
  const std::int64_t sum = weights();
  if (heads < 1 || heads > kMaxHeads)
    throw invalid_argument("pattern: ", quoted(spec), ": ", heads, " heads, want 1 to ", kMaxHeads);
  if (sum < 1 || heads % sum != 0)
    throw invalid_argument("pattern: ", quoted(spec), ": ", heads, " heads, want a multiple of ",
                           sum, ", the sum of the weights");
  std::vector<HeadPattern> out;
  for (const HeadPattern& kind : kinds) {
    for (std::int64_t n = 0; n < kind.weight * (heads / sum); ++n) {
      const auto h = static_cast<std::int64_t>(out.size());
      out.push_back({kind.parts, 1});
      for (Part& part : out.back().parts)
        if (auto* s = std::get_if<Summary>(&part); s != nullptr && s->group < 0)
          s->group = h % (s->stride / s->width);
    }
  }
  return out;
}

}  // namespace longstride
