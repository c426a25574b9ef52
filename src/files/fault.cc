#include "files/fault.h"

#include <cerrno>
#include <charconv>
#include <csignal>
#include <cstdlib>
#include <mutex>

#include "longstride/error.h"

namespace longstride {

namespace {

enum class Kind { none, no_space, io, half, kill };

struct Plan {
  Kind kind = Kind::none;
  std::int64_t from = 0;
  bool onwards = false;
};

Kind parse_kind(std::string_view name) {
  if (name == "enospc") return Kind::no_space;
  if (name == "eio") return Kind::io;
  if (name == "short") return Kind::half;
  if (name == "kill") return Kind::kill;
  return Kind::none;
}

Plan parse_plan(std::string_view spec) {
  if (spec.empty()) return {};
  const auto at = spec.find('@');
  Plan plan;
  plan.kind = parse_kind(spec.substr(0, at));
  std::string_view number = at == spec.npos ? "" : spec.substr(at + 1);
  plan.onwards = number.ends_with('+');
  if (plan.onwards) number.remove_suffix(1);
  const auto [end, bad] = std::from_chars(number.data(), number.data() + number.size(), plan.from);
  const bool whole = bad == std::errc() && end == number.data() + number.size();
  if (plan.kind == Kind::none || !whole || plan.from < 1)
    throw invalid_argument("LONGSTRIDE_FAULT: '", spec,
                           "', want enospc|eio|short|kill @ number [+]");
  return plan;
}

struct State {
  std::mutex mutex;
  Plan plan;
  std::int64_t calls = 0;
  State() {
    const char* spec = std::getenv("LONGSTRIDE_FAULT");
    if (spec) plan = parse_plan(spec);
  }
};

State& state() {
  static State one;
  return one;
}

}  // namespace

Strike next_write_call() {
  State& s = state();
  const std::lock_guard lock(s.mutex);
  const std::int64_t call = ++s.calls;
  const bool hit = call == s.plan.from || (s.plan.onwards && call > s.plan.from);
  if (!hit) return {};
  switch (s.plan.kind) {
    case Kind::none:
      return {};
    case Kind::no_space:
      return {.error = ENOSPC};
    case Kind::io:
      return {.error = EIO};
    case Kind::half:
      return {.error = ENOSPC, .half = true};
    case Kind::kill:
      std::raise(SIGKILL);
  }
  return {};
}

void set_fault(std::string_view spec) {
  State& s = state();
  const std::lock_guard lock(s.mutex);
  s.plan = parse_plan(spec);
  s.calls = 0;
}

std::int64_t write_calls() {
  State& s = state();
  const std::lock_guard lock(s.mutex);
  return s.calls;
}

}  // namespace longstride
