#include "inspect/picture.h"
#include "longstride/error.h"
#include "longstride/inspect.h"
#include "pattern/work.h"

namespace longstride {

namespace {

constexpr std::int64_t kMaxLength = std::int64_t{1} << 26, kMaxWidth = std::int64_t{1} << 20;
constexpr std::int64_t kBytes = 2;  // bfloat16

void check(const char* name, std::int64_t value, std::int64_t most) {
  if (value < 1 || value > most)
    throw invalid_argument("inspect: ", name, " is ", value, ", want 1 to ", most);
}

HeadReport report_kind(const AttentionPlan& plan, std::size_t kind, const PatternOptions& options) {
  HeadReport report;
  for (const Part& part : plan.patterns[kind].parts) report.parts.push_back(to_string(part));
  report.heads = 0;
  for (const std::int64_t k : plan.kind_of_head)
    report.heads += k == static_cast<std::int64_t>(kind) ? 1 : 0;
  const HeadWork work = count_work(plan.kinds[kind], plan.length, options.block);
  report.pairs = work.pairs;
  report.blocks = work.blocks;
  report.cache_keys = work.cache_keys;
  report.read_keys = work.read_keys;
  report.density = work.density;
  const HeadCost c = cost(work.pairs, plan.length, options.head_width, options.head_width, kBytes);
  report.forward_flops = c.forward_flops;
  report.backward_flops = c.backward_flops;
  report.forward_bytes = c.forward_bytes;
  report.backward_bytes = c.backward_bytes;
  return report;
}

}  // namespace

AttentionPlan plan_of(const PatternOptions& options) {
  check("length", options.length, kMaxLength);
  check("block", options.block, kMaxLength);
  check("head_width", options.head_width, kMaxWidth);
  if (options.heads < 0)
    throw invalid_argument("inspect: heads is ", options.heads,
                           ", want 0 (as in the pattern) or more");
  const LayerPattern layer = parse_pattern(options.spec);
  return {layer.heads(options.heads > 0 ? options.heads : layer.weights()), options.length};
}

PatternReport inspect_pattern(const PatternOptions& options) {
  const AttentionPlan plan = plan_of(options);
  PatternReport report;
  report.pattern = options.spec;
  report.expanded = to_string(parse_pattern(options.spec));
  report.length = options.length;
  report.block = options.block;
  report.head_width = options.head_width;
  for (std::size_t kind = 0; kind < plan.kinds.size(); ++kind) {
    report.kinds.push_back(report_kind(plan, kind, options));
    report.pairs += report.kinds.back().heads * report.kinds.back().pairs;
  }
  return report;
}

}  // namespace longstride
