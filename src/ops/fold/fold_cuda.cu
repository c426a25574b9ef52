// Weights as products read them, and their gradients back. What is where is decided once on the
// host: a list of tasks, one a block, that lies on the device.
//
//   fold    a task is up to kFoldRows rows of one map times kFoldCols columns, or all its rows
//           where the biases of the norm go through it: b' is a sum down the columns
//   unfold  a task is kUnfoldRows rows of all maps behind one norm, a warp a row: dg and dc are
//           sums along the rows of all of them
//
// Bytes an element: fold 4 + sizeof(A), unfold 12 behind a norm and 8 elsewhere (0.19 and 0.36 ms
// for 95M parameters, most of them behind a norm, in bf16 at 3 TB/s). Bound: memory.
#include <algorithm>
#include <cstdint>
#include <map>
#include <tuple>

#include "base/integers.h"
#include "device/number.cuh"
#include "device/upload.h"
#include "ops/fold/fold_cuda.h"
#include "ops/shape.h"

namespace longstride::ops::cuda {

namespace {

using device::from_float, device::load, device::Pack, device::store;

constexpr int kThreads = 256, kWarps = kThreads / 32;
constexpr int kFoldRows = 512, kFoldCols = 64, kUnfoldRows = 32;

struct FoldTask {
  int item;
  std::int64_t row, rows, col;
};

// Maps [first, last) have one norm, or there is one map and no norm.
struct UnfoldTask {
  int first, last;
  std::int64_t row;
};

// Whether a map is whole packs of four, in all arrays.
__host__ __device__ inline bool packs(const FoldItem& item) {
  return item.out % 4 == 0 && item.weight % 4 == 0 && item.packed % 4 == 0 &&
         item.packed_stride % 4 == 0 && (item.packed_bias < 0 || item.packed_bias % 4 == 0);
}

// The threads of a block stand as 256 / kAcross rows of kAcross packs of N columns.
template <class A, int N>
__device__ void fold_task(const FoldItem& item, const FoldTask& task, const float* flat, A* packed,
                          float* packed_biases) {
  constexpr int kAcross = kFoldCols / N, kDown = kThreads / kAcross, kAhead = 4;
  __shared__ Pack<float, N> sums[kThreads];
  const int across = threadIdx.x % kAcross, down = threadIdx.x / kAcross;
  const std::int64_t col = task.col + across * N, end = task.row + task.rows;
  const bool through = item.norm_bias >= 0, inside = col < item.out;
  Pack<float, N> sum = {};
  for (std::int64_t i = task.row + down; inside && i < end; i += kAhead * kDown) {
    Pack<float, N> w[kAhead];
    float gain[kAhead], shift[kAhead];
#pragma unroll
    for (int k = 0; k < kAhead; ++k) {
      const std::int64_t row = i + k * kDown;
      if (row >= end) continue;
      w[k] = load<N>(flat + item.weight + row * item.out + col);
      gain[k] = item.gain >= 0 ? flat[item.gain + row] : 1;
      shift[k] = through ? flat[item.norm_bias + row] : 0;
    }
#pragma unroll
    for (int k = 0; k < kAhead; ++k) {
      const std::int64_t row = i + k * kDown;
      if (row >= end) continue;
      Pack<A, N> folded;
#pragma unroll
      for (int n = 0; n < N; ++n) {
        folded.at[n] = from_float<A>(gain[k] * w[k].at[n]);
        sum.at[n] = fmaf(shift[k], w[k].at[n], sum.at[n]);
      }
      store(packed + item.packed + row * item.packed_stride + col, folded);
    }
  }
  if (item.packed_bias < 0 || task.row > 0) return;
  sums[threadIdx.x] = sum;
  for (int half = kDown / 2; half > 0; half /= 2) {
    __syncthreads();
    if (down < half)
#pragma unroll
      for (int n = 0; n < N; ++n)
        sums[threadIdx.x].at[n] += sums[threadIdx.x + half * kAcross].at[n];
  }
  if (down > 0 || !inside) return;
#pragma unroll
  for (int n = 0; n < N; ++n)
    packed_biases[item.packed_bias + col + n] =
        (item.bias >= 0 ? flat[item.bias + col + n] : 0) + sums[threadIdx.x].at[n];
}

template <class A>
__global__ void __launch_bounds__(kThreads)
    fold_kernel(const FoldItem* items, const FoldTask* tasks, const float* flat, A* packed,
                float* packed_biases) {
  const FoldTask task = tasks[blockIdx.x];
  const FoldItem item = items[task.item];
  if (packs(item))
    fold_task<A, 4>(item, task, flat, packed, packed_biases);
  else
    fold_task<A, 1>(item, task, flat, packed, packed_biases);
}

// Row `row` of one map; adds to dg and dc what this thread saw.
template <int N>
__device__ void unfold_row(const FoldItem& item, std::int64_t row, const float* flat,
                           const float* packed, const float* packed_biases, float* gradient,
                           float& dgain, float& dshift) {
  constexpr int kAhead = 2;
  const bool norm = item.gain >= 0 || item.norm_bias >= 0;
  const bool biased = item.norm_bias >= 0;
  const float gain = item.gain >= 0 ? flat[item.gain + row] : 1;
  const float shift = biased ? flat[item.norm_bias + row] : 0;
  const float* const from = packed + item.packed + row * item.packed_stride;
  const float* const weight = flat + item.weight + row * item.out;
  float* const to = gradient + item.weight + row * item.out;
  for (std::int64_t o = threadIdx.x % 32 * N; o < item.out; o += 32 * N * kAhead) {
    Pack<float, N> dw[kAhead], w[kAhead] = {}, db[kAhead] = {};
#pragma unroll
    for (int k = 0; k < kAhead; ++k) {
      const std::int64_t col = o + k * 32 * N;
      if (col >= item.out) continue;
      dw[k] = load<N>(from + col);
      if (norm) w[k] = load<N>(weight + col);
      if (biased) db[k] = load<N>(packed_biases + item.packed_bias + col);
    }
#pragma unroll
    for (int k = 0; k < kAhead; ++k) {
      const std::int64_t col = o + k * 32 * N;
      if (col >= item.out) continue;
#pragma unroll
      for (int n = 0; n < N; ++n) {
        dgain = fmaf(w[k].at[n], dw[k].at[n], dgain);
        dshift = fmaf(w[k].at[n], db[k].at[n], dshift);
        dw[k].at[n] = fmaf(gain, dw[k].at[n], shift * db[k].at[n]);
      }
      store(to + col, dw[k]);
    }
  }
}

__device__ float warp_sum(float x) {
#pragma unroll
  for (int distance = 16; distance > 0; distance /= 2)
    x += __shfl_xor_sync(0xffffffffu, x, distance);
  return x;
}

__global__ void __launch_bounds__(kThreads)
    unfold_kernel(const FoldItem* items, const UnfoldTask* tasks, const float* flat,
                  const float* packed, const float* packed_biases, float* gradient) {
  const UnfoldTask task = tasks[blockIdx.x];
  if (task.row == 0)
    for (int m = task.first; m < task.last; ++m)
      if (items[m].bias >= 0)
        for (std::int64_t o = threadIdx.x; o < items[m].out; o += kThreads)
          gradient[items[m].bias + o] = packed_biases[items[m].packed_bias + o];
  const FoldItem& norm = items[task.first];
  const std::int64_t end = min(norm.in, task.row + kUnfoldRows);
  for (std::int64_t row = task.row + threadIdx.x / 32; row < end; row += kWarps) {
    float dgain = 0, dshift = 0;
    bool start = false;
    for (int m = task.first; m < task.last; ++m) {
      const FoldItem item = items[m];
      start = start || item.first_of_norm;
      if (packs(item))
        unfold_row<4>(item, row, flat, packed, packed_biases, gradient, dgain, dshift);
      else
        unfold_row<1>(item, row, flat, packed, packed_biases, gradient, dgain, dshift);
    }
    dgain = warp_sum(dgain), dshift = warp_sum(dshift);
    if (threadIdx.x % 32 > 0) continue;
    if (norm.gain >= 0) gradient[norm.gain + row] = (start ? 0 : gradient[norm.gain + row]) + dgain;
    if (norm.norm_bias >= 0)
      gradient[norm.norm_bias + row] = (start ? 0 : gradient[norm.norm_bias + row]) + dshift;
  }
}

void check(const FoldItem& item) {
  if (item.in < 1 || item.out < 1 || item.weight < 0 || item.packed < 0 ||
      item.packed_stride < item.out)
    throw invalid_argument("fold: a map ", item.in, "x", item.out, " at ", item.weight, " to ",
                           item.packed, " with a row stride of ", item.packed_stride,
                           ", want positive sizes, places and a stride of at least ", item.out);
  if (item.packed_bias < 0 && (item.bias >= 0 || item.norm_bias >= 0))
    throw invalid_argument("fold: the map at ", item.weight,
                           " has a bias but no place for it, want a packed_bias");
}

// Maps behind one norm stand side by side, in the order of their first.
std::vector<FoldItem> by_norm(const std::vector<FoldItem>& items) {
  std::vector<FoldItem> sorted = items;
  std::map<std::pair<std::int64_t, std::int64_t>, std::int64_t> first;
  const auto place = [&](const FoldItem& item) {
    const auto alone = item.weight;
    if (item.gain < 0 && item.norm_bias < 0) return alone;
    return first.try_emplace({item.gain, item.norm_bias}, alone).first->second;
  };
  std::vector<std::pair<std::int64_t, std::size_t>> order;
  for (std::size_t m = 0; m < items.size(); ++m) order.emplace_back(place(items[m]), m);
  std::stable_sort(order.begin(), order.end(),
                   [](const auto& a, const auto& b) { return a.first < b.first; });
  for (std::size_t m = 0; m < items.size(); ++m) sorted[m] = items[order[m].second];
  return sorted;
}

bool same_norm(const FoldItem& a, const FoldItem& b) {
  return (a.gain >= 0 || a.norm_bias >= 0) && a.gain == b.gain && a.norm_bias == b.norm_bias;
}

std::vector<FoldTask> fold_tasks(const std::vector<FoldItem>& items) {
  std::vector<FoldTask> tasks;
  for (std::size_t m = 0; m < items.size(); ++m) {
    const FoldItem& item = items[m];
    const std::int64_t rows = item.norm_bias >= 0 ? item.in : kFoldRows;
    for (std::int64_t row = 0; row < item.in; row += rows)
      for (std::int64_t col = 0; col < item.out; col += kFoldCols)
        tasks.push_back({static_cast<int>(m), row, std::min(rows, item.in - row), col});
  }
  return tasks;
}

std::vector<UnfoldTask> unfold_tasks(const std::vector<FoldItem>& items) {
  std::vector<UnfoldTask> tasks;
  for (std::size_t m = 0, end = 0; m < items.size(); m = end) {
    end = m + 1;
    while (end < items.size() && same_norm(items[m], items[end])) {
      if (items[end].in != items[m].in)
        throw invalid_argument("fold: maps of ", items[m].in, " and ", items[end].in,
                               " rows behind one norm, want equal numbers");
      ++end;
    }
    for (std::int64_t row = 0; row < items[m].in; row += kUnfoldRows)
      tasks.push_back({static_cast<int>(m), static_cast<int>(end), row});
  }
  return tasks;
}

// Elements that the maps reach in the flat array, the packed one and the packed biases.
struct Extents {
  std::int64_t flat = 0, packed = 0, biases = 0;
  explicit Extents(const std::vector<FoldItem>& items) {
    for (const FoldItem& item : items) {
      for (const std::int64_t end : {item.weight + item.in * item.out, item.bias + item.out,
                                     item.gain + item.in, item.norm_bias + item.in})
        flat = std::max(flat, end);
      packed = std::max(packed, item.packed + (item.in - 1) * item.packed_stride + item.out);
      if (item.packed_bias >= 0) biases = std::max(biases, item.packed_bias + item.out);
    }
  }
};

template <class T>
void want_reach(const char* who, const char* name, Vector<T> v, std::int64_t size) {
  if (v.size < size || (v.data == nullptr && size > 0))
    throw invalid_argument(who, ": ", name, " has ", v.size, " entries, want at least ", size);
  if (reinterpret_cast<std::uintptr_t>(v.data) % 16 != 0)
    throw invalid_argument(who, ": ", name, " is at ", v.data, ", want a multiple of 16 bytes");
}

}  // namespace

struct Folds::State {
  explicit State(const std::vector<FoldItem>& sorted)
      : extents(sorted),
        items(device::uploaded(sorted)),
        fold(device::uploaded(fold_tasks(sorted))),
        unfold(device::uploaded(unfold_tasks(sorted))) {}
  Extents extents;
  device::DeviceBuffer<FoldItem> items;
  device::DeviceBuffer<FoldTask> fold;
  device::DeviceBuffer<UnfoldTask> unfold;
};

Folds::Folds(const std::vector<FoldItem>& items) {
  std::for_each(items.begin(), items.end(), check);
  state_ = new State(by_norm(items));
}

Folds::~Folds() { delete state_; }

template <class A>
void Folds::fold(device::Stream stream, Vector<const float> flat, Vector<A> packed,
                 Vector<float> packed_biases) const {
  const State& s = *state_;
  want_reach("fold", "flat", flat, s.extents.flat);
  want_reach("fold", "packed", packed, s.extents.packed);
  want_reach("fold", "packed_biases", packed_biases, s.extents.biases);
  if (s.fold.size() == 0) return;
  fold_kernel<A><<<static_cast<unsigned>(s.fold.size()), kThreads, 0, stream>>>(
      s.items.data(), s.fold.data(), flat.data, packed.data, packed_biases.data);
  device::launched(stream, "fold of ", s.items.size(), " maps");
}

void Folds::unfold(device::Stream stream, Vector<const float> flat, Vector<const float> packed,
                   Vector<const float> packed_biases, Vector<float> gradient) const {
  const State& s = *state_;
  want_reach("unfold", "flat", flat, s.extents.flat);
  want_reach("unfold", "packed", packed, s.extents.packed);
  want_reach("unfold", "packed_biases", packed_biases, s.extents.biases);
  want_reach("unfold", "gradient", gradient, s.extents.flat);
  if (s.unfold.size() == 0) return;
  unfold_kernel<<<static_cast<unsigned>(s.unfold.size()), kThreads, 0, stream>>>(
      s.items.data(), s.unfold.data(), flat.data, packed.data, packed_biases.data, gradient.data);
  device::launched(stream, "unfold of ", s.items.size(), " maps");
}

template void Folds::fold(device::Stream, Vector<const float>, Vector<float>, Vector<float>) const;
template void Folds::fold(device::Stream, Vector<const float>, Vector<bf16>, Vector<float>) const;
template void Folds::fold(device::Stream, Vector<const float>, Vector<fp16>, Vector<float>) const;

}  // namespace longstride::ops::cuda
