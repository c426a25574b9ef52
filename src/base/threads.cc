#include "base/threads.h"

#include <omp.h>
#include <sched.h>

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <exception>
#include <mutex>

namespace longstride {

namespace {

std::atomic<int> g_threads{0};

int cores() {
  cpu_set_t set;
  if (sched_getaffinity(0, sizeof(set), &set) == 0) return std::max(1, CPU_COUNT(&set));
  return std::max(1, omp_get_num_procs());
}

int from_environment(const char* name) {
  const char* value = std::getenv(name);
  return value ? std::max(0, std::atoi(value)) : 0;
}

}  // namespace

void set_threads(int threads) {
  if (threads <= 0) threads = from_environment("LONGSTRIDE_NUM_THREADS");
  if (threads <= 0) threads = from_environment("OMP_NUM_THREADS");
  if (threads <= 0) threads = cores();
  g_threads = threads;
}

int threads() {
  if (g_threads == 0) set_threads(0);
  return g_threads;
}

void parallel_for(std::int64_t count, const std::function<void(std::int64_t)>& task) {
  if (count <= 0) return;
  // Libraries called inside a task (oneDNN) must not split their work: how they split it would
  // depend on the thread count, and so would their sums. This setting is per thread.
  omp_set_num_threads(1);
  const int team = static_cast<int>(std::min<std::int64_t>(threads(), count));
  if (team == 1 || omp_in_parallel()) {
    for (std::int64_t i = 0; i < count; ++i) task(i);
    return;
  }
  std::mutex mutex;
  std::exception_ptr error;
  std::int64_t error_at = count;
#pragma omp parallel for schedule(dynamic, 1) num_threads(team)
  for (std::int64_t i = 0; i < count; ++i) {
    try {
      task(i);
    } catch (...) {
      const std::lock_guard lock(mutex);
      if (i < error_at) error_at = i, error = std::current_exception();
    }
  }
  if (error) std::rethrow_exception(error);
}

void parallel_ranges(std::int64_t count, std::int64_t grain,
                     const std::function<void(std::int64_t, std::int64_t)>& task) {
  const std::int64_t pieces = (count + grain - 1) / grain;
  parallel_for(pieces, [&](std::int64_t p) { task(p * grain, std::min(count, (p + 1) * grain)); });
}

}  // namespace longstride
