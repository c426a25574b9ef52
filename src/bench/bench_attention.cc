// Time of attention: of each part and pattern of the paper, beside its floor; and against the
// length, where work proportional to the kept pairs shows as an exponent.
#include <cmath>

#include "bench/attention_case.h"
#include "bench/tile_pairs.h"
#include "longstride/error.h"
#include "longstride/runtime.h"
#include "pattern/work.h"

namespace longstride {

namespace {

using bench::AttentionCase;
using bench::AttentionShape;

constexpr std::int64_t kLongest = std::int64_t{1} << 24, kMostValues = std::int64_t{1} << 36;

// Work and traffic of all heads: q, k, v, out once forward; those and dout read and float dq, dk,
// dv written backward.
struct Cost {
  double forward_flops = 0, backward_flops = 0;
  double forward_tile_flops = 0, backward_tile_flops = 0;
  double forward_bytes = 0, backward_bytes = 0;
};

Cost cost_of(const AttentionPlan& plan, const AttentionShape& shape, std::size_t bytes_per_value) {
  constexpr std::int64_t kBlock = 32;  // of the block counts, which are not used here
  std::vector<Cost> of_kind;
  for (const HeadPlan& kind : plan.kinds) {
    const auto flops = [&](std::int64_t pairs) {
      return cost(pairs, shape.length, shape.width, shape.width, 0);
    };
    const HeadCost kept = flops(count_work(kind, shape.length, kBlock).pairs);
    const HeadCost tiles = flops(bench::tile_pairs(kind));
    of_kind.push_back(
        {kept.forward_flops, kept.backward_flops, tiles.forward_flops, tiles.backward_flops, 0, 0});
  }
  Cost sum;
  const auto batch = static_cast<double>(shape.batch);
  for (const auto kind : plan.kind_of_head) {
    const Cost& c = of_kind[static_cast<std::size_t>(kind)];
    sum.forward_flops += batch * c.forward_flops;
    sum.backward_flops += batch * c.backward_flops;
    sum.forward_tile_flops += batch * c.forward_tile_flops;
    sum.backward_tile_flops += batch * c.backward_tile_flops;
  }
  const auto values = static_cast<double>(shape.values());
  const auto bytes = static_cast<double>(bytes_per_value);
  sum.forward_bytes = 4 * bytes * values;
  sum.backward_bytes = (5 * bytes + 3 * sizeof(float)) * values;
  return sum;
}

class AttentionBench {
 public:
  explicit AttentionBench(const AttentionBenchOptions& options) : o_(options) {}

  BenchReport run() {
    bench::measure_peaks(report_);
    if (o_.parts && o_.f32) parts<float>();
    if (o_.parts && o_.bf16) parts<bf16>();
    if (o_.growth) o_.f32 ? growth<float>() : growth<bf16>();
    bench::measure_peaks(report_);
    report_.fits = fit_exponents(report_.rows);
    return std::move(report_);
  }

 private:
  template <class A>
  BenchRow row(const std::string& series, const std::string& spec, const AttentionShape& s) const {
    BenchRow r;
    r.series = "attention " + series;
    r.shape = text("B ", s.batch, " H ", s.heads, " N ", s.length, " D ", s.width);
    if (!spec.empty()) r.shape += " " + spec;
    r.bf16 = std::is_same_v<A, bf16>;
    return r;
  }

  template <class A>
  void pattern(const std::string& name, AttentionCase<A>& attention, const std::string& spec) {
    attention.set_pattern(spec);
    const Cost c = cost_of(attention.plan(), attention.shape(), sizeof(A));
    BenchRow forward = row<A>(name + ", forward", "", attention.shape());
    forward.flops = c.forward_flops;
    forward.tile_flops = c.forward_tile_flops;
    forward.bytes = c.forward_bytes;
    forward.seconds = bench::fastest([&] { attention.forward(); });
    BenchRow backward = row<A>(name + ", backward", "", attention.shape());
    backward.flops = c.backward_flops;
    backward.tile_flops = c.backward_tile_flops;
    backward.bytes = c.backward_bytes;
    backward.seconds = bench::fastest([&] { attention.backward(); });
    report_.rows.push_back(std::move(forward));
    report_.rows.push_back(std::move(backward));
  }

  template <class A>
  void parts() {
    const std::int64_t l = o_.stride;
    {
      AttentionCase<A> attention({o_.batch, o_.heads, o_.length, o_.width});
      const std::string local = text("local(", l, ")"), column = text("column(", l, ")");
      for (const std::string& spec :
           {local, column, text("row(", l, ")"), text("fixed(", l, ",", o_.summary, ")"),
            text("strided(", l, ")")})
        pattern(spec, attention, spec);
      pattern("half " + local + " half " + column, attention, local + "," + column);
    }
    AttentionCase<A> attention({o_.batch, o_.heads, o_.dense_length, o_.width});
    pattern("dense", attention, "dense");
  }

  template <class A>
  void growth() {
    constexpr std::int64_t kHeads = 4, kWidth = 64, kLongestDense = 8192;
    for (std::int64_t n = o_.min_length; n <= o_.max_length; n *= 2) {
      AttentionCase<A> attention({1, kHeads, n, kWidth});
      const auto stride = std::llround(std::sqrt(static_cast<double>(n)));
      grown("strided(sqrt N)", attention, text("strided(", stride, ")"));
      if (n <= kLongestDense) grown("dense", attention, "dense");
    }
  }

  template <class A>
  void grown(const std::string& name, AttentionCase<A>& attention, const std::string& spec) {
    attention.set_pattern(spec);
    const Cost c = cost_of(attention.plan(), attention.shape(), sizeof(A));
    BenchRow both = row<A>(name, spec, attention.shape());
    both.size = static_cast<double>(attention.shape().length);
    both.flops = c.forward_flops + c.backward_flops;
    both.tile_flops = c.forward_tile_flops + c.backward_tile_flops;
    both.bytes = c.forward_bytes + c.backward_bytes;
    both.seconds = bench::fastest([&] { attention.forward(), attention.backward(); });
    report_.rows.push_back(std::move(both));
  }

  AttentionBenchOptions o_;
  BenchReport report_;
};

void positive(const char* name, std::int64_t value) {
  if (value < 1 || value > kLongest)
    throw invalid_argument("bench: ", name, " is ", value, ", want 1 to ", kLongest);
}

void check(const AttentionBenchOptions& o) {
  if (!o.f32 && !o.bf16) throw invalid_argument("bench: no precision, want f32, bf16 or both");
  if (o.min_length < 2 || o.min_length > o.max_length || o.max_length > kLongest)
    throw invalid_argument("bench: lengths are ", o.min_length, " to ", o.max_length,
                           ", want 2 <= min <= max <= ", kLongest);
  positive("batch", o.batch);
  positive("heads", o.heads);
  positive("length", o.length);
  positive("dense length", o.dense_length);
  positive("width", o.width);
  positive("stride", o.stride);
  positive("summary", o.summary);
  const std::int64_t longest = std::max(o.length, o.dense_length);
  const double values = static_cast<double>(o.batch) * static_cast<double>(o.heads) *
                        static_cast<double>(longest) * static_cast<double>(o.width);
  if (values > static_cast<double>(kMostValues))
    throw invalid_argument("bench: batch ", o.batch, ", heads ", o.heads, ", length ", longest,
                           ", width ", o.width, " make ", values, " values, want 2^36 at most");
  if (o.heads % 2 != 0)
    throw invalid_argument("bench: heads is ", o.heads, ", want an even number");
  if (o.stride % o.summary != 0)
    throw invalid_argument("bench: stride ", o.stride, " is not a multiple of summary ", o.summary);
}

}  // namespace

BenchReport bench_attention(const AttentionBenchOptions& options) {
  check(options);
  return AttentionBench(options).run();
}

}  // namespace longstride
