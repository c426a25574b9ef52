// The tiles of keys of a query tile, in two ways: of a pass with one even part they follow from the
// two ends of what the tile sees, of any other pass from a walk.
#pragma once

#include "ops/attention/attention_forward_warp.cuh"

namespace longstride::ops::cuda {

// The key tiles of a pass with one part whose keys lie evenly: known from its two ends.
template <class Shape>
struct OneRange {
  static constexpr bool kOne = true;
  const DevicePart* part;
  std::int32_t lane;
  KeyRange keys;
  std::int32_t origin, step;

  __device__ __forceinline__ OneRange(char*, const QueryTile& tile, const DevicePart* parts,
                                      ForwardRows<Shape>& rows, int first)
      : part(parts + tile.pass.only_part), lane(lane_of(*part, tile.position(0))) {
    const KeyMap map = key_map(*part, lane);
    origin = map.first;
    step = map.step;
    keys = rows.begin_range(*part, lane, tile, first);
  }
  __device__ __forceinline__ void prepare(int) {}
  __device__ __forceinline__ std::int32_t first(int n) const {
    return keys.begin + n * Shape::kKeys;
  }
  __device__ __forceinline__ bool has(int n) const { return first(n) < keys.end; }
  __device__ __forceinline__ void enter(int, ForwardRows<Shape>&, const QueryTile&, int) {}
  __device__ __forceinline__ std::int32_t position(int n, int r) const {
    const std::int32_t t = first(n) + r;
    return t < keys.end ? origin + t * step : -1;
  }
};

// Those of any pass, by way of shared memory.
template <class Shape>
struct ManyRanges {
  static constexpr bool kOne = false;
  typename Shape::Walk& walk;
  const DevicePart* part = nullptr;
  std::int32_t lane = 0, range = -1;

  __device__ __forceinline__ ManyRanges(char* shared, const QueryTile& tile,
                                        const DevicePart* parts, ForwardRows<Shape>&, int)
      : walk(*reinterpret_cast<typename Shape::Walk*>(shared + Shape::kWalkAt)) {
    if (threadIdx.x == 0) walk.begin(tile, parts);
    __syncwarp();
  }
  __device__ __forceinline__ void prepare(int n) {
    if (threadIdx.x < 32) walk.write(n);
  }
  __device__ __forceinline__ std::int32_t first(int n) const {
    return walk.ring[n % Shape::kSlots].first;
  }
  __device__ __forceinline__ bool has(int n) const {
    return walk.ring[n % Shape::kSlots].part != nullptr;
  }
  // Tile n is next: where it begins a range, what the rows see of that.
  __device__ __forceinline__ void enter(int n, ForwardRows<Shape>& rows, const QueryTile& tile,
                                        int first_row) {
    const KeySlot& slot = walk.ring[n % Shape::kSlots];
    if (slot.range == range) return;
    range = slot.range;
    part = in_memory(slot.part);
    lane = slot.lane;
    rows.begin_range(*part, lane, tile, first_row);
  }
  __device__ __forceinline__ std::int32_t position(int n, int r) const {
    return walk.position[n % Shape::kSlots][r];
  }
};

}  // namespace longstride::ops::cuda
