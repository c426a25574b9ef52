// The power law behind rows of one series.
#include <cmath>
#include <map>

#include "longstride/runtime.h"

namespace longstride {

namespace {

struct Sums {
  double n = 0, x = 0, y = 0, xx = 0, xy = 0;
  void add(double u, double v) { n += 1, x += u, y += v, xx += u * u, xy += u * v; }
  double spread() const { return n * xx - x * x; }
  double slope() const { return (n * xy - x * y) / spread(); }
};

}  // namespace

std::vector<BenchFit> fit_exponents(const std::vector<BenchRow>& rows) {
  std::map<std::string, Sums> series;
  for (const BenchRow& row : rows)
    if (row.size > 0 && row.seconds > 0)
      series[row.series + (row.bf16 ? ", bf16" : "")].add(std::log(row.size),
                                                          std::log(row.seconds));
  std::vector<BenchFit> fits;
  for (const auto& [name, sums] : series)
    if (sums.spread() > 1e-9) fits.push_back({name, sums.slope()});
  return fits;
}

}  // namespace longstride
