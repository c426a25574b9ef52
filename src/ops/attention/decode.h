// Attention for one new position out of a cache that keeps only what the pattern will read again.
//
// The cache holds, for each head and each part of its union, cache_slots() keys and values
// (PartPlan::cache_slot). A step first stores the new position's key and value, then reads
// O(sqrt N) keys. The bits equal those of attention() over the whole sequence.
#pragma once

#include <cstdint>
#include <vector>

#include "pattern/plan.h"
#include "tensor/tensor.h"

namespace longstride::ops {

// The cache of one layer for one sequence. Owns its memory; the plan must outlive it.
template <class T>
class KvCache {
 public:
  KvCache(const AttentionPlan& plan, std::int64_t heads, std::int64_t qk_width,
          std::int64_t v_width);

  // k [H * d_qk], v [H * d_v] of position i.
  void store(Position i, const T* k, const T* v);

  const T* key(std::int64_t head, std::size_t part, std::int64_t slot) const;
  const T* value(std::int64_t head, std::size_t part, std::int64_t slot) const;

  const AttentionPlan& plan() const { return *plan_; }
  std::int64_t heads() const { return heads_; }
  std::int64_t qk_width() const { return qk_width_; }
  std::int64_t v_width() const { return v_width_; }
  std::int64_t bytes() const;

 private:
  struct Store {
    Buffer<T> keys, values;
  };
  const AttentionPlan* plan_;
  std::int64_t heads_, qk_width_, v_width_;
  std::vector<std::vector<Store>> stores_;  // [head][part]
};

extern template class KvCache<float>;
extern template class KvCache<double>;

template <class T>
struct Decode {
  const KvCache<T>* cache = nullptr;
  Position position = 0;
  const T* q = nullptr;  // [H * d_qk]
  T* out = nullptr;      // [H * d_v]
  T scale = 1;
};

void decode(const Decode<float>& op);
void decode(const Decode<double>& op);

}  // namespace longstride::ops
