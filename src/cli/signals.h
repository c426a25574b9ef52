// SIGINT and SIGTERM as a request to stop.
#pragma once

namespace longstride::cli {

// From now on the first signal only sets the flag; the second ends the process at once (128 + its
// number). Call it before any thread starts.
void catch_stop_signals();
bool stop_requested();

}  // namespace longstride::cli
