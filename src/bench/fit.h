// The power law behind rows of one series.
#pragma once

#include <vector>

#include "longstride/runtime.h"

namespace longstride::bench {

// Least squares of log seconds against log size, for each series with two sizes or more.
std::vector<BenchFit> fit_exponents(const std::vector<BenchRow>& rows);

}  // namespace longstride::bench
