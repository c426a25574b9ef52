// How the parts of a union overlap.
#pragma once

#include "pattern/plan.h"

namespace longstride {

// The positions between the first and the last that `part` lets i see, at most [0, i + 1). For a
// column the own position is left out: it is always cut off as the newest.
Interval hull(const Part& part, Position i);

// True only where it is certain, whatever the query: `earlier` has every pair of `part`; the two
// have no pair in common but for the own position.
bool covers(const Part& earlier, const Part& part);
bool apart(const Part& earlier, const Part& part, std::int64_t length);

// `part` with the key blocks of every query block up to `length` written out.
Blocks listed(const Random& part, std::int64_t length);

}  // namespace longstride
