// A counting sort in three steps: each block counts the lists' rows in its chunk; one block turns
// counts into places; each block puts its chunk in place, every warp its own part in order. Atomics
// count integers only.
// Bytes: 2 read and 4 written a row. Bound: the latency of three small kernels, some 10 us.
#include <algorithm>
#include <cstdint>

#include "base/integers.h"
#include "ops/embedding/row_sort_cuda.h"

namespace longstride::ops::cuda {

namespace {

constexpr int kThreads = 1024, kWarps = kThreads / 32;
constexpr int kScanThreads = 288;  // one a list, whole warps
static_assert(kScanThreads >= kLists);

// Few enough for one block to look at the counts of all, enough for all multiprocessors.
constexpr std::int64_t kMostChunks = 256, kLeastChunk = 4096;

std::int64_t chunk_rows(std::int64_t rows) {
  return std::max(kLeastChunk, ceil_div(ceil_div(rows, kMostChunks), kThreads) * kThreads);
}
std::int64_t chunks(std::int64_t rows) { return ceil_div(rows, chunk_rows(rows)); }

struct Rows {
  const std::uint8_t* tokens;
  int count, length, chunk;
  __device__ int list(int r) const { return r % length == 0 ? kLists - 1 : tokens[r - 1]; }
};

__global__ void __launch_bounds__(kThreads) count_kernel(Rows rows, int* counts) {
  __shared__ int count[kLists];
  for (int list = threadIdx.x; list < kLists; list += kThreads) count[list] = 0;
  __syncthreads();
  const int begin = static_cast<int>(blockIdx.x) * rows.chunk;
  const int end = min(rows.count - begin, rows.chunk) + begin;
  for (int r = begin + static_cast<int>(threadIdx.x); r < end; r += kThreads)
    atomicAdd(&count[rows.list(r)], 1);
  __syncthreads();
  for (int list = threadIdx.x; list < kLists; list += kThreads)
    counts[blockIdx.x * kLists + list] = count[list];
}

// The sum of x over the threads before this one.
__device__ std::int64_t sum_before(std::int64_t x) {
  __shared__ std::int64_t shared[kScanThreads];
  std::int64_t sum = x;
  for (int distance = 1; distance < kScanThreads; distance *= 2) {
    shared[threadIdx.x] = sum;
    __syncthreads();
    if (static_cast<int>(threadIdx.x) >= distance) sum += shared[threadIdx.x - distance];
    __syncthreads();
  }
  return sum - x;
}

// counts[chunk][list] becomes the place of the chunk's first row of that list.
__global__ void __launch_bounds__(kScanThreads)
    place_kernel(int* counts, int chunk_count, int* list_start, int* piece_start) {
  const int list = static_cast<int>(threadIdx.x);
  int size = 0;
  if (list < kLists) {
#pragma unroll 8
    for (int chunk = 0; chunk < chunk_count; ++chunk) size += counts[chunk * kLists + list];
  }
  const int pieces = (size + static_cast<int>(kPiece) - 1) / static_cast<int>(kPiece);
  const std::int64_t before = sum_before(std::int64_t{pieces} << 32 | size);  // both at once
  const auto start = static_cast<int>(before & 0xffffffff), piece = static_cast<int>(before >> 32);
  if (list >= kLists) return;
  list_start[list] = start;
  piece_start[list] = piece;
  if (list == kLists - 1) {
    list_start[kLists] = start + size;
    piece_start[kLists] = piece + pieces;
  }
  int place = start;
#pragma unroll 8
  for (int chunk = 0; chunk < chunk_count; ++chunk) {
    const int count = counts[chunk * kLists + list];
    counts[chunk * kLists + list] = place;
    place += count;
  }
}

__global__ void __launch_bounds__(kThreads) move_kernel(Rows rows, const int* places, int* to) {
  __shared__ int place[kWarps][kLists];  // of each warp's next row of a list
  const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;
  for (int i = threadIdx.x; i < kWarps * kLists; i += kThreads) place[0][i] = 0;
  __syncthreads();
  const int part = rows.chunk / kWarps;
  const int begin = static_cast<int>(blockIdx.x) * rows.chunk + warp * part;
  const int end = min(begin + part, rows.count);
  for (int r = begin + lane; r < end; r += 32) atomicAdd(&place[warp][rows.list(r)], 1);
  __syncthreads();
  for (int list = threadIdx.x; list < kLists; list += kThreads) {
    int next = places[blockIdx.x * kLists + list];
    for (int w = 0; w < kWarps; ++w) {
      const int count = place[w][list];
      place[w][list] = next;
      next += count;
    }
  }
  __syncthreads();
  for (int first = begin; first < end; first += 32) {
    const int r = first + lane, list = r < end ? rows.list(r) : -1;
    const unsigned same = __match_any_sync(0xffffffffu, list);
    const int rank = __popc(same & ((1u << lane) - 1));
    if (r < end) to[place[warp][list] + rank] = r;
    __syncwarp();
    if (r < end && rank == 0) place[warp][list] += __popc(same);
    __syncwarp();
  }
}

}  // namespace

std::int64_t most_pieces(std::int64_t rows) { return rows / kPiece + kLists; }

std::int64_t sort_ints(std::int64_t rows) { return rows + (chunks(rows) + 2) * (kLists + 1); }

SortedRows sort_rows(device::Stream stream, const std::uint8_t* tokens, std::int64_t batch,
                     std::int64_t length, int* scratch) {
  const std::int64_t count = batch * length, each = chunk_rows(count);
  const auto blocks = static_cast<unsigned>(chunks(count));
  const Rows rows{tokens, static_cast<int>(count), static_cast<int>(length),
                  static_cast<int>(each)};
  int* const sorted = scratch;
  int* const list_start = sorted + count;
  int* const piece_start = list_start + kLists + 1;
  int* const counts = piece_start + kLists + 1;
  count_kernel<<<blocks, kThreads, 0, stream>>>(rows, counts);
  place_kernel<<<1, kScanThreads, 0, stream>>>(counts, static_cast<int>(blocks), list_start,
                                               piece_start);
  move_kernel<<<blocks, kThreads, 0, stream>>>(rows, counts, sorted);
  return {sorted, list_start, piece_start};
}

}  // namespace longstride::ops::cuda
