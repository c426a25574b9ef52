// The only place where threads start. Tasks never share output, so results do not depend on how
// many threads run or in which order tasks finish.
#pragma once

#include <cstdint>
#include <functional>

namespace longstride {

// 0 = LONGSTRIDE_NUM_THREADS, else OMP_NUM_THREADS, else the cores this process may use.
void set_threads(int threads);
int threads();

// Calls task(i) for every i in [0, count), each exactly once, on up to threads() threads; blocks
// until all are done. The first exception (by index) is rethrown. Nested calls run inline.
void parallel_for(std::int64_t count, const std::function<void(std::int64_t)>& task);

// Splits [0, count) into pieces of `grain` (a fixed size: never a function of the thread count)
// and calls task(begin, end) for each.
void parallel_ranges(std::int64_t count, std::int64_t grain,
                     const std::function<void(std::int64_t, std::int64_t)>& task);

}  // namespace longstride
