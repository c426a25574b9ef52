#include "base/threads.h"

#include <omp.h>
#include <sched.h>

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <exception>
#include <limits>
#include <mutex>
#include <thread>

#include "base/integers.h"

namespace longstride {

namespace {

using Task = std::function<void(std::int64_t)>;

std::atomic<int> g_threads{0};
thread_local bool t_in_task = false;

int cores() {
  cpu_set_t set;
  if (sched_getaffinity(0, sizeof(set), &set) == 0) return std::max(1, CPU_COUNT(&set));
  return std::max(1u, std::thread::hardware_concurrency());
}

int from_environment(const char* name) {
  const char* value = std::getenv(name);
  return value ? std::max(0, std::atoi(value)) : 0;
}

// Libraries called inside a task (oneDNN) must not split their work: how they split it would depend
// on the thread count, and so would their sums. OpenMP keeps this setting per thread.
void keep_libraries_single_threaded() { omp_set_num_threads(1); }

// The first failure of a loop, by index.
class Failure {
 public:
  void keep(std::int64_t index, std::exception_ptr error) {
    const std::lock_guard lock(mutex_);
    if (index < index_) index_ = index, error_ = std::move(error);
  }
  void rethrow() const {
    if (error_) std::rethrow_exception(error_);
  }

 private:
  std::mutex mutex_;
  std::int64_t index_ = std::numeric_limits<std::int64_t>::max();
  std::exception_ptr error_;
};

// Workers that help the calling thread. The caller takes tasks itself and in the end waits only for
// tasks that a worker has begun, never for a worker to wake up: on a busy machine, where a barrier
// would cost a time slice of the scheduler, it simply does the work alone. (After fork() the child
// has no workers and does exactly that.)
//
// `ticket_` is loop number * 2^32 + next index. A worker reads the loop's fields and then claims an
// index by compare-and-swap; since the caller changes the ticket before it changes the fields, a
// claim that succeeds proves that the fields belong to that loop.
class Pool {
 public:
  // False: another thread's loop has the workers.
  bool run(std::uint32_t count, int team, const Task& task) {
    const std::unique_lock lock(busy_, std::try_to_lock);
    if (!lock) return false;
    for (; workers_ < team - 1; ++workers_)
      std::thread([this, id = workers_] { work(id); }).detach();

    Failure failure;
    const std::uint64_t loop = (ticket_.load() >> 32) + 1;
    ticket_.store(loop << 32 | kClosed);
    task_.store(&task);
    failure_.store(&failure);
    count_.store(count);
    helpers_.store(team - 1);
    done_.store(0);
    ticket_.store(loop << 32);
    generation_.fetch_add(1);
    generation_.notify_all();

    help();
    for (int spins = 0; done_.load() != count; ++spins)
      if (spins > 64) std::this_thread::yield();
    failure.rethrow();
    return true;
  }

 private:
  static constexpr std::uint64_t kClosed = 0xffffffff;  // no index to claim

  // Takes tasks of the open loop until none is left.
  void help() {
    for (;;) {
      std::uint64_t ticket = ticket_.load();
      const std::uint64_t index = ticket & kClosed;
      const Task* task = task_.load();
      Failure* failure = failure_.load();
      if (index >= count_.load()) return;
      if (!ticket_.compare_exchange_weak(ticket, ticket + 1)) continue;
      t_in_task = true;
      try {
        (*task)(static_cast<std::int64_t>(index));
      } catch (...) {
        failure->keep(static_cast<std::int64_t>(index), std::current_exception());
      }
      t_in_task = false;
      done_.fetch_add(1);
    }
  }

  [[noreturn]] void work(int id) {
    keep_libraries_single_threaded();
    std::uint32_t seen = 0;
    for (;;) {
      // A short wait in user space: loops follow each other within microseconds.
      for (int spins = 0; spins < 256 && generation_.load() == seen; ++spins)
        if (spins > 128) std::this_thread::yield();
      generation_.wait(seen);
      seen = generation_.load();
      if (id < helpers_.load()) help();
    }
  }

  std::mutex busy_;
  int workers_ = 0;
  std::atomic<std::uint32_t> generation_{0};
  std::atomic<std::uint64_t> ticket_{kClosed};
  std::atomic<const Task*> task_{nullptr};
  std::atomic<Failure*> failure_{nullptr};
  std::atomic<std::uint64_t> count_{0};
  std::atomic<std::uint32_t> done_{0};
  std::atomic<int> helpers_{0};
};

// Never destroyed: workers wait in it until the process ends.
Pool& pool() {
  static Pool* const instance = new Pool;
  return *instance;
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

void parallel_for(std::int64_t count, const Task& task) {
  if (count <= 0) return;
  keep_libraries_single_threaded();
  const int team = static_cast<int>(std::min<std::int64_t>(threads(), count));
  const bool fits = count < std::numeric_limits<std::uint32_t>::max();
  if (team > 1 && fits && !t_in_task && pool().run(static_cast<std::uint32_t>(count), team, task))
    return;
  Failure failure;
  for (std::int64_t i = 0; i < count; ++i) {
    try {
      task(i);
    } catch (...) {
      failure.keep(i, std::current_exception());
    }
  }
  failure.rethrow();
}

void parallel_ranges(std::int64_t count, std::int64_t grain,
                     const std::function<void(std::int64_t, std::int64_t)>& task) {
  const std::int64_t pieces = ceil_div(count, grain);
  parallel_for(pieces, [&](std::int64_t p) { task(p * grain, std::min(count, (p + 1) * grain)); });
}

}  // namespace longstride
