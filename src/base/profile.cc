#include "base/profile.h"

#include <algorithm>
#include <atomic>
#include <mutex>
#include <string_view>

#include "longstride/runtime.h"

namespace longstride {

namespace {

std::atomic<bool> on{false};
std::mutex mutex;
std::vector<ProfileRow> rows;  // under `mutex`

}  // namespace

void set_profiling(bool wanted) {
  const std::lock_guard lock(mutex);
  rows.clear();
  on = wanted;
}

bool profiling() { return on; }

std::vector<ProfileRow> take_profile() {
  const std::lock_guard lock(mutex);
  std::vector<ProfileRow> taken;
  taken.swap(rows);
  std::sort(taken.begin(), taken.end(),
            [](const ProfileRow& a, const ProfileRow& b) { return a.seconds > b.seconds; });
  return taken;
}

void add_time(const char* name, double seconds) {
  const std::lock_guard lock(mutex);
  for (ProfileRow& row : rows)
    if (std::string_view(row.name) == name) {
      row.seconds += seconds;
      ++row.calls;
      return;
    }
  rows.push_back({name, seconds, 1});
}

Timed::Timed(const char* name) : name_(profiling() ? name : nullptr) {
  if (name_) begin_ = std::chrono::steady_clock::now();
}

Timed::~Timed() {
  if (!name_) return;
  const std::chrono::duration<double> took = std::chrono::steady_clock::now() - begin_;
  add_time(name_, took.count());
}

}  // namespace longstride
