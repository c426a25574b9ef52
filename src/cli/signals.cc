// A thread waits for the signals; no handler ever runs. A handler would run on the stack of the
// thread it interrupts, and oneDNN 2.6.3's sgemm keeps live data below its stack pointer: a signal
// during a matrix product corrupted the heap in most trials (tests/cli_test.py has one).
#include "cli/signals.h"

#include <pthread.h>
#include <unistd.h>

#include <atomic>
#include <csignal>
#include <cstdio>
#include <thread>

namespace longstride::cli {

namespace {

std::atomic<bool> g_stop{false};

sigset_t stop_signals() {
  sigset_t set;
  sigemptyset(&set);
  sigaddset(&set, SIGINT);
  sigaddset(&set, SIGTERM);
  return set;
}

void wait_for_signals() {
  const sigset_t set = stop_signals();
  for (int number = 0; sigwait(&set, &number) == 0;) {
    if (g_stop.exchange(true)) _exit(128 + number);
    std::fputs("\nlongstride: stopping after this step and saving; once more to stop at once\n",
               stderr);
  }
}

}  // namespace

void catch_stop_signals() {
  // Every thread started from here on inherits the mask, so that only sigwait takes the signals.
  const sigset_t set = stop_signals();
  pthread_sigmask(SIG_BLOCK, &set, nullptr);
  std::thread(wait_for_signals).detach();
}

bool stop_requested() { return g_stop; }

}  // namespace longstride::cli
