// The host's side of the Hopper kernels: what they can take, and tensor maps of head views.
#pragma once

#include <vector>

#include "device/tensor_map.h"
#include "ops/attention/attention_sm90.h"
#include "ops/attention/attention_sm90_tiles.cuh"

namespace longstride::ops::cuda::sm90 {

// 16-byte pieces; extents and strides within what a tensor map can say.
template <class A>
bool can_map(const Heads<A>& x) {
  const auto pieces = [](std::int64_t n) { return n > 0 && n % 8 == 0; };
  return reinterpret_cast<std::uintptr_t>(x.data) % 16 == 0 && pieces(x.width) &&
         pieces(x.row_stride) && x.length > 0 && x.length * x.row_stride < std::int64_t{1} << 38;
}

// Whether tiles of `tile` keys suit the parts that the passes use.
bool can_tile(const Line& line, int tile);

// Whether no query sees more than `keys` keys of a part, and they lie together.
bool sees_few(const Line& line, std::int32_t keys);

// Whether the gradients of all keys can be had tile by tile (attention_sm90_key_tiles.cuh).
bool can_turn(const Line& line);

// Shapes of the keys: shapes[0], and one for each kind of summary among the passes.
std::vector<KeyShape> shapes_of(const Line& line);

// Boxes of `rows` consecutive positions of one head.
template <class A>
CUtensorMap rows_map(const Heads<const A>& x, int rows);
// Boxes of up to `tile` keys of a shape.
template <class A>
CUtensorMap keys_map(const Heads<const A>& x, const KeyShape& shape, int tile);

// Heads in a group: as many as fit in the L2 cache together (bytes: what passes by, a head), but
// enough for work of all lengths at a time; then several thread blocks still share what passes by.
std::int32_t heads_in_group(std::int64_t bytes, std::int64_t heads);

}  // namespace longstride::ops::cuda::sm90
