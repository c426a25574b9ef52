// Rows of the report as the benches of operations add them.
#pragma once

#include <functional>
#include <string>
#include <type_traits>

#include "bench/measure.h"
#include "longstride/error.h"

namespace longstride::bench {

inline double real(std::int64_t n) { return static_cast<double>(n); }

// Times `work` and adds its row: A is its precision, bytes what has to be read and written.
template <class A>
void add_row(BenchReport& report, const std::string& series, const std::string& shape, double flops,
             double bytes, const std::function<void()>& work) {
  constexpr double kBudget = 0.1;  // seconds
  BenchRow row;
  row.series = series;
  row.shape = shape;
  row.flops = flops;
  row.bytes = bytes;
  row.bf16 = std::is_same_v<A, bf16>;
  row.seconds = fastest(work, kBudget);
  report.rows.push_back(std::move(row));
}

void add_linear_rows(BenchReport& report);   // matrix products
void add_rowwise_rows(BenchReport& report);  // all other operations

}  // namespace longstride::bench
