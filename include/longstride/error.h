// The one exception the library throws.
//
// Its message reads "who: what is wrong, with the values that are wrong, and what was wanted", in
// one line. The library never prints and never exits: the command line prints the line and returns
// exit_code(), Python raises the mapped exception.
#pragma once

#include <sstream>
#include <stdexcept>
#include <string>
#include <utility>

namespace longstride {

enum class Fault {
  internal,          // exit 1: a fault of ours
  invalid_argument,  // exit 2: wrong usage, config or input file
  environment,       // exit 3: disk, memory, permission
  numerics,          // exit 4: training stopped by its numbers
  device,            // exit 5: device or driver
  not_supported,     // exit 2: asked for something this build or version does not do
};

struct Error : std::runtime_error {
  Error(Fault why, const std::string& message) : std::runtime_error(message), fault(why) {}
  Fault fault;
};

constexpr int exit_code(Fault fault) {
  switch (fault) {
    case Fault::internal:
      return 1;
    case Fault::invalid_argument:
      return 2;
    case Fault::not_supported:
      return 2;
    case Fault::environment:
      return 3;
    case Fault::numerics:
      return 4;
    case Fault::device:
      return 5;
  }
  return 1;
}

// Stopped on request (SIGINT, SIGTERM) with the state saved: the run can be resumed.
inline constexpr int kExitStopped = 75;

// text("gain has ", 7, " entries, want ", 8)
template <class... Parts>
std::string text(const Parts&... parts) {
  std::ostringstream out;
  (out << ... << parts);
  return std::move(out).str();
}

// throw invalid_argument("layer_norm: gain has ", 7, " entries, want ", 8);
template <class... Parts>
Error invalid_argument(const Parts&... parts) {
  return {Fault::invalid_argument, text(parts...)};
}

template <class... Parts>
Error environment_error(const Parts&... parts) {
  return {Fault::environment, text(parts...)};
}

template <class... Parts>
Error internal_error(const Parts&... parts) {
  return {Fault::internal, text(parts...)};
}

}  // namespace longstride
