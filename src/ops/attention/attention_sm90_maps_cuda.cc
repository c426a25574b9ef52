#include "ops/attention/attention_sm90_maps.h"

#include <algorithm>

#include "base/integers.h"
#include "ops/attention/attention_sm90_key_tiles.cuh"

namespace longstride::ops::cuda::sm90 {

namespace {

template <class F>
bool all_parts(const Line& line, const F& holds) {
  for (const HeadPass& pass : *line.passes)
    for (std::int32_t n = 0; n < pass.parts; ++n) {
      const DevicePart& part = (*line.parts)[static_cast<std::size_t>(pass.first_part + n)];
      if (part.pass == pass.pass && !holds(part)) return false;
    }
  return true;
}

}  // namespace

bool can_tile(const Line& line, int tile) {
  return shapes_of(line).size() <= kMaxShapes && all_parts(line, [&](const DevicePart& part) {
           return part.type != PartType::listed && part.type != PartType::column &&
                  part.masked == 0 &&
                  (part.type != PartType::summary || boxes_fit(part.summary_width.by, tile));
         });
}

bool sees_few(const Line& line, std::int32_t keys) {
  return all_parts(line, [&](const DevicePart& part) {
    const bool row = part.type == PartType::row || part.type == PartType::previous_row;
    return part.window <= keys || part.first_end <= keys || (row && part.fold.by <= keys);
  });
}

bool can_turn(const Line& line) {
  for (const HeadPass& pass : *line.passes) {
    const DevicePart* const summary = summary_of(line.parts->data(), pass);
    for (std::int32_t n = 0; n < pass.parts; ++n) {
      const DevicePart& part = (*line.parts)[static_cast<std::size_t>(pass.first_part + n)];
      if (part.pass == pass.pass && &part != summary && summary != nullptr &&
          (part.type != PartType::row || part.fold.by != summary->fold.by))
        return false;
    }
  }
  return all_parts(line, simple_edges);
}

std::vector<KeyShape> shapes_of(const Line& line) {
  std::vector<KeyShape> shapes(1);
  all_parts(line, [&](const DevicePart& part) {
    const KeyShape shape{part.fold.by, part.summary_width.by};
    if (part.type == PartType::summary &&
        std::none_of(shapes.begin() + 1, shapes.end(), [&](const KeyShape& s) {
          return s.stride == shape.stride && s.width == shape.width;
        }))
      shapes.push_back(shape);
    return true;
  });
  return shapes;
}

template <class A>
CUtensorMap rows_map(const Heads<const A>& x, int rows) {
  return keys_map<A>(x, KeyShape{}, rows);
}

template <class A>
CUtensorMap keys_map(const Heads<const A>& x, const KeyShape& shape, int tile) {
  // Nobody sees the last block of a summary, which may not be whole.
  const bool whole = shape.width == kPositionLimit;
  const std::int64_t stride = whole ? x.length : shape.stride;
  const std::int64_t blocks = whole ? 1 : std::max<std::int64_t>(1, ceil_div(x.length, stride) - 1);
  const int columns = std::min(shape.width, tile);
  return device::tensor_map<A>(
      x.data, {5,
               {x.width, stride, blocks, x.heads, x.batch},
               {x.row_stride, stride * x.row_stride, x.width, x.length * x.row_stride},
               {columns, keys_in_box(shape.width, tile) / columns, 1, 1}});
}

std::int32_t heads_in_group(std::int64_t bytes, std::int64_t heads) {
  constexpr std::int64_t kCache = std::int64_t{24} << 20;  // half of an H100's L2
  constexpr std::int64_t kEnough = 32;
  return static_cast<std::int32_t>(
      std::min(heads, std::max<std::int64_t>(kEnough, kCache / bytes)));
}

template CUtensorMap rows_map(const Heads<const bf16>&, int);
template CUtensorMap rows_map(const Heads<const fp16>&, int);
template CUtensorMap keys_map(const Heads<const bf16>&, const KeyShape&, int);
template CUtensorMap keys_map(const Heads<const fp16>&, const KeyShape&, int);

}  // namespace longstride::ops::cuda::sm90
