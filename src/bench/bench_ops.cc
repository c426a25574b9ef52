#include "bench/timed_rows.h"

namespace longstride {

BenchReport bench_ops() {
  BenchReport report;
  bench::measure_peaks(report);
  bench::add_linear_rows(report);
  bench::add_rowwise_rows(report);
  bench::measure_peaks(report);
  return report;
}

}  // namespace longstride
