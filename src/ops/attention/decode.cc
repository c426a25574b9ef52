// Checks, and the float64 row.
#include "ops/attention/decode.h"

#include <array>
#include <cmath>
#include <vector>

#include "longstride/error.h"
#include "ops/attention/attention_cpu.h"
#include "ops/attention/row.h"
#include "ops/attention/walk.h"

namespace longstride::ops {

namespace {

template <class T>
void check(const Decode<T>& op) {
  if (op.cache == nullptr) throw invalid_argument("decode: no cache");
  if (op.position < 0 || op.position >= op.cache->plan().length)
    throw invalid_argument("decode: position ", op.position, ", want 0 to ",
                           op.cache->plan().length - 1);
  if (op.q == nullptr || op.out == nullptr)
    throw invalid_argument("decode: ", op.q == nullptr ? "q" : "out", " has no data");
  if (!std::isfinite(op.scale))
    throw invalid_argument("decode: scale is ", op.scale, ", want a number");
}

}  // namespace

void decode(const Decode<float>& op) {
  check(op);
  cpu::decode(op);
}

void decode(const Decode<double>& op) {
  check(op);
  cpu::decode(op);
}

namespace cpu {

void decode(const Decode<double>& op) {
  const KvCache<double>& cache = *op.cache;
  const std::int64_t qk_width = cache.qk_width(), v_width = cache.v_width();
  std::vector<double> part_out(static_cast<std::size_t>(v_width));
  std::array<const double*, kKeyChunk> k, v;
  std::array<double, kKeyChunk> scores;
  for (std::int64_t h = 0; h < cache.heads(); ++h) {
    const auto& parts =
        cache.plan()
            .kinds[static_cast<std::size_t>(cache.plan().kind_of_head[static_cast<std::size_t>(h)])]
            .parts;
    double lse = kNoKeys<double>;
    for (std::size_t p = 0; p < parts.size(); ++p) {
      std::fill(part_out.begin(), part_out.end(), 0.0);
      RowState<double> state{.out = part_out.data()};
      walk_row(parts[p], op.position, [&](int count, const Position* kept) {
        for (int j = 0; j < count; ++j) {
          const std::int64_t slot = parts[p].cache_slot(kept[j]);
          k[static_cast<std::size_t>(j)] = cache.key(h, p, slot);
          v[static_cast<std::size_t>(j)] = cache.value(h, p, slot);
        }
        absorb(state, op.q + h * qk_width, qk_width, v_width, op.scale, count, k.data(), v.data(),
               scores.data());
      });
      finish_row(state, p == 0, v_width, op.out + h * v_width, lse);
    }
  }
}

}  // namespace cpu

}  // namespace longstride::ops
