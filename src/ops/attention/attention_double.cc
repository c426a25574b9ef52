// Attention in float64: the plan walked row by row in plain code. It serves as the slow twin of the
// vector kernels (same rows, same chunks, same merge) and to check gradients.
#include <algorithm>
#include <array>
#include <vector>

#include "base/threads.h"
#include "ops/attention/attention_cpu.h"
#include "ops/attention/row.h"
#include "ops/attention/walk.h"

namespace longstride::ops::cpu {

namespace {

constexpr std::int64_t kRows = 64;  // of a forward task

void forward_row(const Attention<double>& op, std::int64_t b, std::int64_t h, Position i,
                 std::vector<double>& part_out) {
  const HeadPlan& head =
      op.plan->kinds[static_cast<std::size_t>(op.plan->kind_of_head[static_cast<std::size_t>(h)])];
  std::array<const double*, kKeyChunk> k, v;
  std::array<double, kKeyChunk> scores;
  for (std::size_t p = 0; p < head.parts.size(); ++p) {
    std::fill(part_out.begin(), part_out.end(), 0.0);
    RowState<double> state{.out = part_out.data()};
    walk_row(head.parts[p], i, [&](int count, const Position* kept) {
      for (int j = 0; j < count; ++j) {
        k[static_cast<std::size_t>(j)] = op.k.at(b, kept[j], h);
        v[static_cast<std::size_t>(j)] = op.v.at(b, kept[j], h);
      }
      absorb(state, op.q.at(b, i, h), op.q.width, op.v.width, op.scale, count, k.data(), v.data(),
             scores.data());
    });
    finish_row(state, p == 0, op.v.width, op.out.at(b, i, h),
               op.lse[(b * op.q.heads + h) * op.q.length + i]);
  }
}

double dot(const double* a, const double* b, std::int64_t width) {
  double sum = 0;
  for (std::int64_t c = 0; c < width; ++c) sum += a[c] * b[c];
  return sum;
}

void backward_row(const AttentionBackward<double>& op, std::int64_t b, std::int64_t h, Position i) {
  const HeadPlan& head =
      op.plan->kinds[static_cast<std::size_t>(op.plan->kind_of_head[static_cast<std::size_t>(h)])];
  const double* const q = op.q.at(b, i, h);
  const double* const dout = op.dout.at(b, i, h);
  double* const dq = op.dq.at(b, i, h);
  const double lse = op.lse[(b * op.q.heads + h) * op.q.length + i];
  const double mean = dot(dout, op.out.at(b, i, h), op.v.width);  // D[i]
  for (const PartPlan& part : head.parts)
    walk_row(part, i, [&](int count, const Position* kept) {
      for (int n = 0; n < count; ++n) {
        const Position j = kept[n];
        const double* const k = op.k.at(b, j, h);
        double *const dk = op.dk.at(b, j, h), *const dv = op.dv.at(b, j, h);
        const double p = std::exp(op.scale * dot(q, k, op.q.width) - lse);
        const double ds = op.scale * p * (dot(dout, op.v.at(b, j, h), op.v.width) - mean);
        for (std::int64_t c = 0; c < op.v.width; ++c) dv[c] += p * dout[c];
        for (std::int64_t c = 0; c < op.q.width; ++c) dq[c] += ds * k[c], dk[c] += ds * q[c];
      }
    });
}

}  // namespace

void attention(const Attention<double>& op) {
  const std::int64_t H = op.q.heads, N = op.q.length;
  parallel_ranges(op.q.batch * H * N, kRows, [&](std::int64_t begin, std::int64_t end) {
    std::vector<double> part_out(static_cast<std::size_t>(op.v.width));
    for (std::int64_t r = begin; r < end; ++r)
      forward_row(op, r / N / H, r / N % H, r % N, part_out);
  });
}

void attention_backward(const AttentionBackward<double>& op) {
  const std::int64_t H = op.q.heads;
  parallel_for(op.q.batch * H, [&](std::int64_t t) {  // a head owns its keys' gradients
    for (const auto* x : {&op.dq, &op.dk, &op.dv})
      for (Position i = 0; i < op.q.length; ++i) std::fill_n(x->at(t / H, i, t % H), x->width, 0.0);
    for (Position i = 0; i < op.q.length; ++i) backward_row(op, t / H, t % H, i);
  });
}

}  // namespace longstride::ops::cpu
