// The hook that makes write-side calls fail, for tests (LONGSTRIDE_FAULT, described in files.h).
#pragma once

#include <cstdint>
#include <string_view>

namespace longstride {

struct Strike {
  int error = 0;      // errno to fail with; 0: go on
  bool half = false;  // a write first writes half of what it was given
};

// Called once before every write-side call. Does not return where the call is to be killed.
Strike next_write_call();

// What LONGSTRIDE_FAULT would set ("" for none); counts from 1 again.
void set_fault(std::string_view spec);

// Write-side calls since the start or the last set_fault().
std::int64_t write_calls();

}  // namespace longstride
