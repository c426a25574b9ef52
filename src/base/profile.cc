#include "base/profile.h"

#include <algorithm>
#include <atomic>
#include <mutex>
#include <string_view>

#include "longstride/runtime.h"

namespace longstride {

namespace {

std::atomic<bool> profiling{false};
std::mutex mutex;
std::vector<ProfileRow> rows;  // under `mutex`

}  // namespace

void set_profiling(bool on) {
  const std::lock_guard lock(mutex);
  rows.clear();
  profiling = on;
}

std::vector<ProfileRow> take_profile() {
  const std::lock_guard lock(mutex);
  std::vector<ProfileRow> taken;
  taken.swap(rows);
  std::sort(taken.begin(), taken.end(),
            [](const ProfileRow& a, const ProfileRow& b) { return a.seconds > b.seconds; });
  return taken;
}

Timed::Timed(const char* name) : name_(profiling ? name : nullptr) {
  if (name_) begin_ = std::chrono::steady_clock::now();
}

Timed::~Timed() {
  if (!name_) return;
  const std::chrono::duration<double> took = std::chrono::steady_clock::now() - begin_;
  const std::lock_guard lock(mutex);
  for (ProfileRow& row : rows)
    if (std::string_view(row.name) == name_) {
      row.seconds += took.count();
      ++row.calls;
      return;
    }
  rows.push_back({name_, took.count(), 1});
}

}  // namespace longstride
