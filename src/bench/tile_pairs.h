// Work that the attention kernels do, where tiles compute pairs that the pattern does not keep.
#pragma once

#include <cstdint>

#include "pattern/plan.h"

namespace longstride::bench {

// Pairs of the tiles of one head: kTile queries each (the last of a lane padded) times its keys,
// from the first that any query reaches to the last; chunks without a kept pair are left out.
std::int64_t tile_pairs(const HeadPlan& head);

}  // namespace longstride::bench
