// Contract: decode_cuda.h. The keys that a row sees, walked through all parts of its head, are cut
// into pieces of kPiece; a block of 4 warps takes a piece:
//
//   find      a thread a key: which position, in which row of the cache (decode_walk.h)
//   scores    8 lanes a key, 16 bytes a lane: s = scale <q, k>
//   softmax   m = max s, p = e^{s - m}, l = sum p
//   values    a thread 16 bytes of the width and every G-th key: o = sum p v
//   merge     the block that ends last of a row:  M = max m,  out = sum e^{m-M} o / sum e^{m-M} l
//
// All sums in a fixed order. Keys that an earlier part has are left out and their memory not read.
//
// work   2 (d_qk + d_v) FLOPs a key       bytes  (d_qk + d_v) sizeof(A) a key
// floor  bytes / bandwidth: fixed(128, 32) at 12,288 has up to 3,200 keys a head, 0.8 MB of bf16 at
//        width 64: 8 heads 2 us
// binds  memory in long rows, latency (some 5 us: three dependent reads) in short ones
#include <algorithm>
#include <vector>

#include "base/integers.h"
#include "device/number.cuh"
#include "device/upload.h"
#include "ops/attention/decode_cuda.h"
#include "ops/attention/decode_walk.h"

namespace longstride::ops::cuda {

namespace {

using device::Pack;

constexpr int kPiece = 128, kThreads = 128, kWarps = kThreads / 32;
constexpr int kLanes = 8;  // that share a key
constexpr int kMostWidth = 256;
constexpr std::int32_t kNotKept = -1, kOwn = -2;  // instead of a row of the cache
static_assert(kPiece == kThreads && kMaxParts <= kThreads);

template <class A>
inline constexpr int kPack = 16 / sizeof(A);

template <class A>
std::int64_t padded(std::int64_t width) {
  return ceil_div(width, kPack<A>) * kPack<A>;
}

}  // namespace

struct DecodeHead {
  std::int32_t first_part = 0, parts = 0;  // of its kind
  std::int32_t first_store = 0;            // of its parts' first rows
};

struct DecodePlan::State {
  std::int64_t length = 0, heads = 0, slots = 0, pieces = 1;
  device::DeviceBuffer<std::int32_t> lists;
  device::DeviceBuffer<DevicePart> parts;        // of all kinds
  device::DeviceBuffer<SlotRule> rules;          // of each of them
  device::DeviceBuffer<DecodeHead> head_table;   // [heads]
  device::DeviceBuffer<std::int32_t> first_row;  // of the cache, of each part of each head
};

namespace {

template <class A>
struct Args {
  const DevicePart* parts;
  const SlotRule* rules;
  const DecodeHead* heads;
  const std::int32_t* first_row;
  const std::int32_t* positions;
  const A *q, *k, *v;
  A *out, *keys, *values;
  float* partial;
  unsigned* tickets;
  std::int64_t q_stride, k_stride, v_stride, out_stride, slots;
  int qk_width, v_width, qk_padded, v_padded, head_count, pieces;
  float scale;
};

template <class A>
struct Shared {
  float q[kMostWidth];
  alignas(16) A k[kMostWidth], v[kMostWidth];  // of the new position
  float p[kPiece];                             // scores, then their exponentials
  std::int32_t row[kPiece];
  float sums[kThreads * kPack<A>];
  float of_warp[kWarps];
  KeyRange seen[kMaxParts];
};

// The new position's key and value to wherever a part will read them.
template <class A>
__device__ void keep(const Args<A>& a, const DecodeHead& head, std::int64_t sequence,
                     std::int32_t i, const Shared<A>& s) {
  for (int p = 0; p < head.parts; ++p) {
    const std::int32_t slot = a.rules[head.first_part + p].slot(i);
    if (slot < 0) continue;
    const std::int64_t row = sequence * a.slots + a.first_row[head.first_store + p] + slot;
    for (int c = threadIdx.x; c < a.qk_width; c += kThreads) a.keys[row * a.qk_padded + c] = s.k[c];
    for (int c = threadIdx.x; c < a.v_width; c += kThreads) a.values[row * a.v_padded + c] = s.v[c];
  }
}

// The maximum or sum over the block of one value a thread; always in the same order.
template <class Join>
__device__ float over_block(float x, float (&of_warp)[kWarps], const Join& join) {
#pragma unroll
  for (int step = 16; step > 0; step /= 2) x = join(x, __shfl_xor_sync(~0u, x, step));
  if (threadIdx.x % 32 == 0) of_warp[threadIdx.x / 32] = x;
  __syncthreads();
  float all = of_warp[0];
#pragma unroll
  for (int w = 1; w < kWarps; ++w) all = join(all, of_warp[w]);
  __syncthreads();
  return all;
}

template <class A>
__device__ void find(const Args<A>& a, const DecodeHead& head, std::int32_t i, int first, int count,
                     Shared<A>& s) {
  if (threadIdx.x >= count) return;
  const DevicePart* const parts = a.parts + head.first_part;
  const FoundKey found = find_key(parts, s.seen, i, first + threadIdx.x);
  std::int32_t row = kNotKept;
  if (found.position == i)
    row = kOwn;
  else if (found.position >= 0)
    row = a.first_row[head.first_store + found.part] +
          a.rules[head.first_part + found.part].slot(found.position);
  s.row[threadIdx.x] = row;
}

// Padding behind a width is zero, in the cache and in q. A group of lanes takes kKeys keys at once,
// so that their loads are under way together.
template <class A>
__device__ void score(const Args<A>& a, const A* keys, int count, Shared<A>& s) {
  constexpr int kGroups = kThreads / kLanes, kKeys = kPiece / kGroups, kP = kPack<A>;
  const int group = threadIdx.x / kLanes, lane = threadIdx.x % kLanes;
  const A* key[kKeys];
#pragma unroll
  for (int n = 0; n < kKeys; ++n) {
    const int at = group + n * kGroups;
    const std::int32_t row = at < count ? s.row[at] : kNotKept;
    key[n] = row == kNotKept ? nullptr : row == kOwn ? s.k : keys + std::int64_t{row} * a.qk_padded;
  }
  float sum[kKeys] = {};
  for (int c = lane * kP; c < a.qk_padded; c += kLanes * kP) {
    Pack<A, kP> part[kKeys];
#pragma unroll
    for (int n = 0; n < kKeys; ++n)
      if (key[n] != nullptr) part[n] = device::load<kP>(key[n] + c);
#pragma unroll
    for (int n = 0; n < kKeys; ++n) {
      if (key[n] == nullptr) continue;
#pragma unroll
      for (int e = 0; e < kP; ++e)
        sum[n] = fmaf(s.q[c + e], device::to_float(part[n].at[e]), sum[n]);
    }
  }
#pragma unroll
  for (int n = 0; n < kKeys; ++n) {
#pragma unroll
    for (int step = kLanes / 2; step > 0; step /= 2) sum[n] += __shfl_xor_sync(~0u, sum[n], step);
    if (lane == 0) s.p[group + n * kGroups] = key[n] == nullptr ? -INFINITY : sum[n] * a.scale;
  }
}

// Leaves sum_j p_j v_j of group g of keys, column c, in s.sums[g * v_padded + c]; returns the
// number of groups.
template <class A>
__device__ int weigh(const Args<A>& a, const A* values, int count, Shared<A>& s) {
  constexpr int kP = kPack<A>, kKeys = 8;
  const int packs = a.v_padded / kP, groups = kThreads / packs;
  const int group = threadIdx.x / packs, c = threadIdx.x % packs * kP;
  if (group < groups) {
    float sum[kP] = {};
    for (int first = group; first < count; first += groups * kKeys) {
      Pack<A, kP> part[kKeys];
      float p[kKeys];
#pragma unroll
      for (int n = 0; n < kKeys; ++n) {
        const int at = first + n * groups;
        const std::int32_t row = at < count ? s.row[at] : kNotKept;
        p[n] = row == kNotKept ? 0 : s.p[at];
        part[n] = {};
        if (row != kNotKept)
          part[n] =
              device::load<kP>((row == kOwn ? s.v : values + std::int64_t{row} * a.v_padded) + c);
      }
#pragma unroll
      for (int n = 0; n < kKeys; ++n)
#pragma unroll
        for (int e = 0; e < kP; ++e) sum[e] = fmaf(p[n], device::to_float(part[n].at[e]), sum[e]);
    }
#pragma unroll
    for (int e = 0; e < kP; ++e) s.sums[group * a.v_padded + c + e] = sum[e];
  }
  __syncthreads();
  return groups;
}

// Whether this block is the last of its row to come here, with what the others wrote in sight.
__device__ bool last_of_row(unsigned* ticket, int blocks) {
  __shared__ bool last;
  __threadfence();
  __syncthreads();
  if (threadIdx.x == 0) {
    last = atomicAdd(ticket, 1u) == static_cast<unsigned>(blocks - 1);
    if (last) *ticket = 0;
  }
  __syncthreads();
  __threadfence();
  return last;
}

// Pieces of (max, sum, out [v_width]), kPiece of them at a time: their weights first, then each
// thread columns of their sum.
template <class A>
__device__ void merge(const Args<A>& a, const float* pieces, int count, A* out, Shared<A>& s) {
  constexpr int kColumns = kMostWidth / kThreads, kLoads = 8;
  const int size = a.v_width + 2;
  float most = -INFINITY;
  for (int n = threadIdx.x; n < count; n += kThreads)
    most = fmaxf(most, __ldcg(pieces + std::int64_t{n} * size));
  most = over_block(most, s.of_warp, [](float x, float y) { return fmaxf(x, y); });
  float total = 0, sum[kColumns] = {};
  for (int first = 0; first < count; first += kPiece) {
    const float* const here = pieces + std::int64_t{first} * size;
    const int left = min(kPiece, count - first);
    float part = 0;
    if (threadIdx.x < left) {
      const float max = __ldcg(here + threadIdx.x * size);
      const float weight = max == -INFINITY ? 0 : expf(max - most);
      s.p[threadIdx.x] = weight;
      part = weight * __ldcg(here + threadIdx.x * size + 1);
    }
    total += over_block(part, s.of_warp, [](float x, float y) { return x + y; });
#pragma unroll
    for (int k = 0; k < kColumns; ++k) {
      const int c = threadIdx.x + k * kThreads;
      for (int n = 0; c < a.v_width && n < left; n += kLoads) {
        float next[kLoads];
#pragma unroll
        for (int l = 0; l < kLoads; ++l)
          next[l] = n + l < left ? s.p[n + l] * __ldcg(here + (n + l) * size + 2 + c) : 0;
#pragma unroll
        for (int l = 0; l < kLoads; ++l) sum[k] += next[l];
      }
    }
    __syncthreads();
  }
#pragma unroll
  for (int k = 0; k < kColumns; ++k)
    if (const int c = threadIdx.x + k * kThreads; c < a.v_width)
      out[c] = device::from_float<A>(total == 0 ? 0 : sum[k] / total);
}

template <class A>
__global__ void __launch_bounds__(kThreads, 4) decode_kernel(Args<A> a) {
  __shared__ __align__(16) unsigned char memory[sizeof(Shared<A>)];  // not to be initialised
  Shared<A>& s = *reinterpret_cast<Shared<A>*>(memory);
  const int piece = blockIdx.x, h = blockIdx.y, sequence = blockIdx.z, t = threadIdx.x;
  const std::int32_t i = a.positions[sequence];
  const DecodeHead head = a.heads[h];
  if (t < head.parts) s.seen[t] = seen_keys(a.parts[head.first_part + t], i);
  __syncthreads();
  int keys = 0;
  for (int p = 0; p < head.parts; ++p) keys += s.seen[p].end - s.seen[p].begin;
  const int first = piece * kPiece, count = min(kPiece, keys - first);
  if (piece > 0 && count <= 0) return;
  for (int c = t; c < a.qk_padded; c += kThreads) {
    const bool inside = c < a.qk_width;
    s.q[c] = inside ? device::to_float(a.q[sequence * a.q_stride + h * a.qk_width + c]) : 0;
    s.k[c] = inside ? a.k[sequence * a.k_stride + h * a.qk_width + c] : A{};
  }
  for (int c = t; c < a.v_padded; c += kThreads)
    s.v[c] = c < a.v_width ? a.v[sequence * a.v_stride + h * a.v_width + c] : A{};
  find(a, head, i, first, count, s);
  __syncthreads();
  if (piece == 0) keep(a, head, sequence, i, s);

  const std::int64_t cache = sequence * a.slots;
  score(a, a.keys + cache * a.qk_padded, count, s);
  __syncthreads();
  const float max = over_block(s.p[t], s.of_warp, [](float x, float y) { return fmaxf(x, y); });
  const float p = s.p[t] == -INFINITY ? 0 : expf(s.p[t] - max);
  const float sum = over_block(p, s.of_warp, [](float x, float y) { return x + y; });
  s.p[t] = p;
  __syncthreads();
  const int groups = weigh(a, a.values + cache * a.v_padded, count, s);

  A* const out = a.out + sequence * a.out_stride + h * a.v_width;
  const std::int64_t row = sequence * a.head_count + h;
  float* const pieces = a.partial + row * a.pieces * (a.v_width + 2);
  const int blocks = (keys + kPiece - 1) / kPiece;
  for (int c = t; c < a.v_width; c += kThreads) {
    float total = s.sums[c];
    for (int g = 1; g < groups; ++g) total += s.sums[g * a.v_padded + c];
    if (blocks <= 1)
      out[c] = device::from_float<A>(sum == 0 ? 0 : total / sum);
    else
      pieces[piece * (a.v_width + 2) + 2 + c] = total;
  }
  if (blocks <= 1) return;
  if (t == 0) {
    pieces[piece * (a.v_width + 2)] = max;
    pieces[piece * (a.v_width + 2) + 1] = sum;
  }
  if (last_of_row(a.tickets + row, blocks)) merge(a, pieces, blocks, out, s);
}

template <class A>
void check(const DecodeScratch& scratch, const Decode<A>& op) {
  if (op.plan == nullptr || op.cache == nullptr || op.positions == nullptr)
    throw invalid_argument("decode: no plan, cache or positions");
  const DecodePlan::State& plan = op.plan->state();
  const DeviceKvCache<A>& cache = *op.cache;
  const std::int64_t sequences = op.q.rows, qk = plan.heads * cache.qk_width,
                     v = plan.heads * cache.v_width;
  if (sequences < 1 || sequences > cache.sequences || op.k.rows != sequences ||
      op.v.rows != sequences || op.out.rows != sequences)
    throw invalid_argument("decode: q ", sequences, ", k ", op.k.rows, ", v ", op.v.rows, ", out ",
                           op.out.rows, " rows, want the same, 1 to ", cache.sequences);
  if (op.q.cols != qk || op.k.cols != qk || op.v.cols != v || op.out.cols != v)
    throw invalid_argument("decode: q ", op.q.cols, ", k ", op.k.cols, ", v ", op.v.cols, ", out ",
                           op.out.cols, " columns, want ", qk, ", ", qk, ", ", v, ", ", v);
  if (cache.keys.size() != cache.sequences * plan.slots * padded<A>(cache.qk_width))
    throw invalid_argument("decode: the cache is that of another plan");
  const std::int64_t rows = sequences * plan.heads;
  if (scratch.tickets.size() < rows ||
      scratch.partial.size() < rows * plan.pieces * (cache.v_width + 2))
    throw invalid_argument("decode: the scratch has ", scratch.partial.size(), " values, want ",
                           rows * plan.pieces * (cache.v_width + 2));
}

}  // namespace

DecodePlan::DecodePlan(const AttentionPlan& plan) : state_(std::make_unique<State>()) {
  State& s = *state_;
  const PlanTables tables(plan);
  s.length = plan.length;
  s.heads = tables.heads;
  std::vector<std::int32_t> first_part;
  std::vector<SlotRule> rules;
  for (const HeadPlan& kind : plan.kinds) {
    first_part.push_back(static_cast<std::int32_t>(rules.size()));
    for (const PartPlan& part : kind.parts) rules.push_back(slot_rule(part));
    s.pieces = std::max(s.pieces, ceil_div(most_keys(kind), kPiece));
  }
  std::vector<DecodeHead> heads;
  std::vector<std::int32_t> first_row;
  for (const std::int64_t kind : plan.kind_of_head) {
    const auto& parts = plan.kinds[static_cast<std::size_t>(kind)].parts;
    heads.push_back({first_part[static_cast<std::size_t>(kind)],
                     static_cast<std::int32_t>(parts.size()),
                     static_cast<std::int32_t>(first_row.size())});
    for (const PartPlan& part : parts) {
      first_row.push_back(static_cast<std::int32_t>(s.slots));
      s.slots += part.cache_slots();
    }
  }
  if (s.slots > std::int64_t{1} << 31)
    throw invalid_argument("decode: a cache of ", s.slots, " keys a sequence, want at most 2^31");
  s.lists = device::uploaded(tables.lists);
  s.parts = device::uploaded(tables.parts_at(s.lists.data()));
  s.rules = device::uploaded(rules);
  s.head_table = device::uploaded(heads);
  s.first_row = device::uploaded(first_row);
}

DecodePlan::~DecodePlan() = default;
DecodePlan::DecodePlan(DecodePlan&&) noexcept = default;
std::int64_t DecodePlan::heads() const { return state_->heads; }
std::int64_t DecodePlan::slots() const { return state_->slots; }
std::int64_t DecodePlan::pieces() const { return state_->pieces; }

template <class A>
DeviceKvCache<A>::DeviceKvCache(const DecodePlan& plan, std::int64_t sequence_count,
                                std::int64_t key_width, std::int64_t value_width)
    : sequences(sequence_count),
      qk_width(key_width),
      v_width(value_width),
      keys(sequences * plan.slots() * padded<A>(qk_width)),
      values(sequences * plan.slots() * padded<A>(v_width)) {
  if (qk_width < 1 || v_width < 1 || qk_width > kMostWidth || v_width > kMostWidth)
    throw invalid_argument("decode: widths of a head ", qk_width, " and ", v_width, ", want 1 to ",
                           kMostWidth);
}

template <class A>
std::int64_t DeviceKvCache<A>::bytes(const DecodePlan& plan, std::int64_t sequences,
                                     std::int64_t qk_width, std::int64_t v_width) {
  return sequences * plan.slots() * (padded<A>(qk_width) + padded<A>(v_width)) *
         static_cast<std::int64_t>(sizeof(A));
}

DecodeScratch::DecodeScratch(std::int64_t sequences, std::int64_t heads, std::int64_t pieces,
                             std::int64_t v_width)
    : partial(sequences * heads * pieces * (v_width + 2)), tickets(sequences * heads) {}

template <class A>
void decode(DecodeScratch& scratch, device::Stream stream, const Decode<A>& op) {
  check(scratch, op);
  const DecodePlan::State& plan = op.plan->state();
  const DeviceKvCache<A>& cache = *op.cache;
  const Args<A> args{plan.parts.data(),
                     plan.rules.data(),
                     plan.head_table.data(),
                     plan.first_row.data(),
                     op.positions,
                     op.q.data,
                     op.k.data,
                     op.v.data,
                     op.out.data,
                     cache.keys.data(),
                     cache.values.data(),
                     scratch.partial.data(),
                     scratch.tickets.data(),
                     op.q.stride,
                     op.k.stride,
                     op.v.stride,
                     op.out.stride,
                     plan.slots,
                     static_cast<int>(cache.qk_width),
                     static_cast<int>(cache.v_width),
                     static_cast<int>(padded<A>(cache.qk_width)),
                     static_cast<int>(padded<A>(cache.v_width)),
                     static_cast<int>(plan.heads),
                     static_cast<int>(plan.pieces),
                     op.scale};
  const dim3 grid(static_cast<unsigned>(plan.pieces), static_cast<unsigned>(plan.heads),
                  static_cast<unsigned>(op.q.rows));
  decode_kernel<<<grid, kThreads, 0, stream>>>(args);
  device::launched(stream, "decode of ", op.q.rows, " sequences, ", plan.heads, " heads, ",
                   plan.slots, " slots");
}

template class DeviceKvCache<float>;
template class DeviceKvCache<bf16>;
template void decode(DecodeScratch&, device::Stream, const Decode<float>&);
template void decode(DecodeScratch&, device::Stream, const Decode<bf16>&);

}  // namespace longstride::ops::cuda
