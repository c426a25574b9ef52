// Counts of work of one head, exact, from the plan.
#pragma once

#include <cstdint>

#include "pattern/plan.h"

namespace longstride {

struct HeadWork {
  std::int64_t pairs = 0;       // kept (query, key) pairs
  std::int64_t blocks = 0;      // tiles [b steps x b key indices] of the parts that hold a pair
  double density = 0;           // pairs / (N (N + 1) / 2)
  std::int64_t cache_keys = 0;  // most keys a sampler keeps at once
  std::int64_t read_keys = 0;   // most keys one sampling step reads
};

// O(length) time where parts are not masked; masked parts are counted pair by pair.
HeadWork count_work(const HeadPlan& head, std::int64_t length, std::int64_t block);

// Floating point operations and least bytes of one head for `pairs` kept pairs:
// forward 2 (d_qk + d_v) flops a pair, backward 2 (3 d_qk + 2 d_v) (scores recomputed);
// bytes: each of q, k, v, out once forward; q, k, v, out, dout read, dq, dk, dv written backward.
struct HeadCost {
  double forward_flops, backward_flops, forward_bytes, backward_bytes;
};
HeadCost cost(std::int64_t pairs, std::int64_t length, std::int64_t qk_width, std::int64_t v_width,
              std::int64_t bytes_per_value);

}  // namespace longstride
