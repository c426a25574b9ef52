#include <algorithm>

#include "longstride/error.h"
#include "ops/attention/decode.h"

namespace longstride::ops {

namespace {

const HeadPlan& head_plan(const AttentionPlan& plan, std::int64_t head) {
  return plan.kinds[static_cast<std::size_t>(plan.kind_of_head[static_cast<std::size_t>(head)])];
}

}  // namespace

template <class T>
KvCache<T>::KvCache(const AttentionPlan& plan, std::int64_t heads, std::int64_t qk_width,
                    std::int64_t v_width)
    : plan_(&plan), heads_(heads), qk_width_(qk_width), v_width_(v_width) {
  if (heads != static_cast<std::int64_t>(plan.kind_of_head.size()))
    throw invalid_argument("kv_cache: ", heads, " heads, the plan has ", plan.kind_of_head.size());
  if (qk_width < 1 || v_width < 1)
    throw invalid_argument("kv_cache: widths ", qk_width, " and ", v_width, ", want at least 1");
  stores_.resize(static_cast<std::size_t>(heads));
  for (std::int64_t h = 0; h < heads; ++h)
    for (const PartPlan& part : head_plan(plan, h).parts)
      stores_[static_cast<std::size_t>(h)].push_back(
          {Buffer<T>(part.cache_slots() * qk_width), Buffer<T>(part.cache_slots() * v_width)});
}

template <class T>
void KvCache<T>::store(Position i, const T* k, const T* v) {
  if (i < 0 || i >= plan_->length)
    throw invalid_argument("kv_cache: position ", i, ", want 0 to ", plan_->length - 1);
  for (std::int64_t h = 0; h < heads_; ++h) {
    const auto& parts = head_plan(*plan_, h).parts;
    for (std::size_t p = 0; p < parts.size(); ++p) {
      const std::int64_t slot = parts[p].cache_slot(i);
      if (slot < 0) continue;
      const Store& store = stores_[static_cast<std::size_t>(h)][p];
      std::copy_n(k + h * qk_width_, qk_width_, store.keys.data() + slot * qk_width_);
      std::copy_n(v + h * v_width_, v_width_, store.values.data() + slot * v_width_);
    }
  }
}

template <class T>
const T* KvCache<T>::key(std::int64_t head, std::size_t part, std::int64_t slot) const {
  return stores_[static_cast<std::size_t>(head)][part].keys.data() + slot * qk_width_;
}

template <class T>
const T* KvCache<T>::value(std::int64_t head, std::size_t part, std::int64_t slot) const {
  return stores_[static_cast<std::size_t>(head)][part].values.data() + slot * v_width_;
}

template <class T>
std::int64_t KvCache<T>::bytes() const {
  std::int64_t values = 0;
  for (const auto& parts : stores_)
    for (const Store& store : parts) values += store.keys.size() + store.values.size();
  return values * static_cast<std::int64_t>(sizeof(T));
}

template class KvCache<float>;
template class KvCache<double>;

}  // namespace longstride::ops
