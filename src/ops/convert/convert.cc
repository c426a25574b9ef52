// From float to bf16, a vector at a time.
// Work: ten instructions a vector. Bytes: 6 a value. Bound: memory.
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "ops/convert/convert.cc"
#include "hwy/foreach_target.h"
// After foreach_target.h, which includes this file once per instruction set.
#include <cstdint>

#include "base/threads.h"
#include "ops/convert/convert.h"
#include "ops/shape.h"
#include "ops/simd.h"

HWY_BEFORE_NAMESPACE();
namespace longstride::ops::HWY_NAMESPACE {

void convert_range(const float* from, bf16* to, std::int64_t n) {
  for_vectors(n, [&](std::int64_t i, auto lanes) { lanes.store(lanes.load(from + i), to + i); });
}

}  // namespace longstride::ops::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace longstride::ops {

HWY_EXPORT(convert_range);

void convert(Vector<const float> from, Vector<bf16> to) {
  want_size("convert", "from", from, from.size);
  want_size("convert", "to", to, from.size);
  constexpr std::int64_t kGrain = 32768;  // elements a task: some 10 us
  parallel_ranges(from.size, kGrain, [&](std::int64_t begin, std::int64_t end) {
    HWY_DYNAMIC_DISPATCH(convert_range)(from.data + begin, to.data + begin, end - begin);
  });
}

}  // namespace longstride::ops
#endif  // HWY_ONCE
