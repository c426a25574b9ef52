// Attention in bf16 on tiles: availability, tasks, and the walk over the lanes of a task.
#include "ops/attention/attention_amx.h"

#include <hwy/base.h>

#include <algorithm>

#include "base/threads.h"
#include "ops/attention/attention_amx_tasks.h"
#include "ops/scratch.h"
#include "tensor/tensor.h"

#if HWY_ARCH_X86_64 && defined(__linux__)
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace longstride::ops::cpu {

namespace {

#if HWY_ARCH_X86_64 && defined(__linux__)
bool has_bits(unsigned value, std::initializer_list<int> bits) {
  return std::all_of(bits.begin(), bits.end(), [&](int bit) { return value >> bit & 1; });
}

bool processor_and_system_have_tiles() {
  unsigned a = 0, b = 0, c = 0, d = 0;
  if (!__get_cpuid_count(1, 0, &a, &b, &c, &d) || !has_bits(c, {12, 27}))
    return false;  // FMA, XSAVE
  if (!__get_cpuid_count(7, 0, &a, &b, &c, &d)) return false;
  // AVX2, BMI 1 and 2, AVX-512 F, DQ, BW, VL; AMX BF16, TILE.
  if (!has_bits(b, {3, 5, 8, 16, 17, 30, 31}) || !has_bits(d, {22, 24})) return false;
  if (a < 1 || !__get_cpuid_count(7, 1, &a, &b, &c, &d) || !has_bits(a, {5})) return false;
  unsigned low = 0, high = 0;
  asm volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  // The system keeps SSE, AVX, the three parts of AVX-512, and tiles.
  if (!has_bits(low, {1, 2, 5, 6, 7, 17, 18})) return false;
  constexpr long kRequestPermission = 0x1023, kTileData = 18;
  return ::syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
}
#else
bool processor_and_system_have_tiles() { return false; }
#endif

const TileKernels& kernels_of(TileUnit unit) {
  return unit == TileUnit::amx ? kAmxKernels : kEmulatedKernels;
}

template <class T>
Rows<T> rows(const Heads<T>& x, const TileTask& task) {
  return {x.at(task.batch, 0, task.head), x.row_stride, x.width};
}

LaneLists& lane_lists() {
  thread_local LaneLists lists;
  return lists;
}

unsigned char* memory_of(const Arena& measured) {
  thread_local ScratchOf<unsigned char> memory;
  return memory.at_least(measured.size());
}

// O between the parts of unions, [B, H, N, d_v] floats: out would round it at each part.
float* between_parts(const Attention<bf16>& op) {
  static thread_local Buffer<float> between;
  const auto is_union = [](const HeadPlan& kind) { return kind.parts.size() > 1; };
  if (std::none_of(op.plan->kinds.begin(), op.plan->kinds.end(), is_union)) return nullptr;
  const std::int64_t size = op.q.batch * op.q.heads * op.q.length * op.v.width;
  if (between.size() < size) between = Buffer<float>(size);
  return between.data();
}

void run_forward(const Attention<bf16>& op, const TileTask& task, float* between,
                 const TileKernels& kernels) {
  Arena measure(nullptr);
  ForwardSpace(measure, op.q.width, op.v.width);
  Arena arena(memory_of(measure));
  const ForwardSpace space(arena, op.q.width, op.v.width);
  std::fill_n(space.zero, std::max(op.q.width, op.v.width), bf16());
  const std::int64_t row = (task.batch * op.q.heads + task.head) * op.q.length;
  const ForwardRows in = {
      rows(op.q, task),
      rows(op.k, task),
      rows(op.v, task),
      rows(op.out, task),
      {between == nullptr ? nullptr : between + row * op.v.width, op.v.width, op.v.width},
      op.lse.data + row,
      op.scale,
      task.first,
      task.last};
  for (std::int64_t lane = task.lane_begin; lane < task.lane_end; ++lane) {
    const LaneBlock block = lane_lists().list(task, lane, kChunk);
    if (block.queries > 0) kernels.forward(in, block, space);
  }
}

// All lanes of the task: a lane may read the keys of another.
void clear_gradients(const AttentionBackward<bf16>& op, const TileTask& task) {
  for (std::int64_t lane = task.lane_begin; lane < task.lane_end; ++lane) {
    const LaneBlock block = lane_lists().list(task, lane, 1);
    for (const auto* x : {&op.dq, &op.dk, &op.dv})
      for (std::int64_t n = 0; n < block.queries; ++n)
        std::fill_n(x->at(task.batch, block.query[n], task.head), x->width, 0.0f);
  }
}

// Gradients of few keys that are summed apart: [B, H, slots][kFewKeys][d_qk + d_v] floats.
class KeySums {
 public:
  KeySums(const AttentionBackward<bf16>& op, std::int64_t slots)
      : slots_(slots), qk_width_(op.q.width), v_width_(op.v.width), heads_(op.q.heads) {
    static thread_local Buffer<float> sums;
    const std::int64_t size = op.q.batch * heads_ * slots * kFewKeys * (qk_width_ + v_width_);
    if (sums.size() < size) sums = Buffer<float>(size);
    data_ = sums.data();
  }
  Rows<float> dk(const TileTask& task, std::int64_t slot) const {
    const std::int64_t n = (task.batch * heads_ + task.head) * slots_ + slot;
    return {data_ + n * kFewKeys * (qk_width_ + v_width_), qk_width_ + v_width_, qk_width_};
  }
  Rows<float> dv(const TileTask& task, std::int64_t slot) const {
    return {dk(task, slot).data + qk_width_, qk_width_ + v_width_, v_width_};
  }

 private:
  std::int64_t slots_, qk_width_, v_width_, heads_;
  float* data_;
};

void clear(const Rows<float>& x, std::int64_t count) {
  for (Position i = 0; i < count; ++i) std::fill_n(x.at(i), x.width, 0.0f);
}

void add(const Rows<float>& x, std::int64_t count, const Rows<float>& to) {
  for (Position i = 0; i < count; ++i)
    for (std::int64_t c = 0; c < x.width; ++c) to.at(i)[c] += x.at(i)[c];
}

void add_key_sums(const AttentionBackward<bf16>& op, const TileTask& task, const KeySums& sums) {
  const std::int64_t keys = std::min(task.part->keys(0), op.q.length);
  for (std::int64_t slot = 0; slot < task.slots; ++slot) {
    add(sums.dk(task, slot), keys, rows(op.dk, task));
    add(sums.dv(task, slot), keys, rows(op.dv, task));
  }
}

void run_backward(const AttentionBackward<bf16>& op, const TileTask& task, std::int64_t queries,
                  const KeySums& sums, const TileKernels& kernels) {
  if (task.slots > 0) return add_key_sums(op, task, sums);
  Arena measure(nullptr);
  BackwardSpace(measure, queries, op.q.width, op.v.width);
  Arena arena(memory_of(measure));
  const BackwardSpace space(arena, queries, op.q.width, op.v.width);
  std::fill_n(space.zero, std::max(op.q.width, op.v.width), bf16());
  const std::int64_t row = (task.batch * op.q.heads + task.head) * op.q.length;
  BackwardRows in = {rows(op.q, task),    rows(op.k, task),  rows(op.v, task),  rows(op.out, task),
                     rows(op.dout, task), rows(op.dq, task), rows(op.dk, task), rows(op.dv, task),
                     op.lse.data + row,   op.scale,          task.overwrite};
  if (task.slot >= 0) {
    in.dk = sums.dk(task, task.slot);
    in.dv = sums.dv(task, task.slot);
    clear(in.dk, kFewKeys);
    clear(in.dv, kFewKeys);
  }
  if (task.fresh && !task.overwrite) clear_gradients(op, task);
  for (std::int64_t lane = task.lane_begin; lane < task.lane_end; ++lane) {
    const LaneBlock block = lane_lists().list(task, lane, 1);
    if (block.queries > 0 && block.keys > 0) kernels.backward(in, block, space);
  }
}

}  // namespace

bool amx_available() {
  static const bool available = processor_and_system_have_tiles();
  return available;
}

void attention_on_tiles(const Attention<bf16>& op, TileUnit unit) {
  const TileTasks tasks(*op.plan, op.q.batch, op.q.length, false);
  float* const between = between_parts(op);
  for (const auto& level : tasks.levels())
    parallel_for(static_cast<std::int64_t>(level.size()), [&](std::int64_t t) {
      run_forward(op, level[static_cast<std::size_t>(t)], between, kernels_of(unit));
    });
}

void attention_backward_on_tiles(const AttentionBackward<bf16>& op, TileUnit unit) {
  const TileTasks tasks(*op.plan, op.q.batch, op.q.length, true);
  const KeySums sums(op, tasks.slots());
  for (const auto& level : tasks.levels())
    parallel_for(static_cast<std::int64_t>(level.size()), [&](std::int64_t t) {
      run_backward(op, level[static_cast<std::size_t>(t)], tasks.most_queries(), sums,
                   kernels_of(unit));
    });
}

void attention_amx(const Attention<bf16>& op) { attention_on_tiles(op, TileUnit::amx); }

void attention_backward_amx(const AttentionBackward<bf16>& op) {
  attention_backward_on_tiles(op, TileUnit::amx);
}

}  // namespace longstride::ops::cpu
