#include "cli/signals.h"

#include <unistd.h>

#include <csignal>
#include <cstddef>
#include <string_view>

namespace longstride::cli {

namespace {

volatile std::sig_atomic_t g_stop = 0;

// Only async-signal-safe calls.
void on_signal(int number) {
  if (g_stop != 0) _exit(128 + number);
  g_stop = 1;
  constexpr std::string_view kNote =
      "\nlongstride: stopping after this step and saving; once more to stop at once\n";
  [[maybe_unused]] const ssize_t written = write(STDERR_FILENO, kNote.data(), kNote.size());
}

}  // namespace

void catch_stop_signals() {
  struct sigaction action {};
  action.sa_handler = on_signal;
  action.sa_flags = SA_RESTART;  // a signal must not turn a write into an error
  sigemptyset(&action.sa_mask);
  sigaction(SIGINT, &action, nullptr);
  sigaction(SIGTERM, &action, nullptr);
}

bool stop_requested() { return g_stop != 0; }

}  // namespace longstride::cli
