// Formula and contract: few_rows_cuda.h.
//
// work   2 R in out FLOPs          bytes  sizeof(A) in out (W, once) + the rows
// floor  bytes / bandwidth: ff1 of 512 x 2048 in bf16 takes 2 MB, 0.6 us from HBM, less from L2
// binds  memory, and at small widths the launch (2 us)
//
// A block of 8 warps takes a tile of 64 columns and a piece of k. Half a warp reads 64 columns of a
// row of W (4 a lane), so 16 values of k are read at once, and up to 8 such loads are under way. A
// value of W is multiplied with all rows, whose x wait in shared memory. Sums: over the k that are
// equal modulo 16 in order, then those of two half warps, then of the warps, then of the pieces,
// each in order. The block that ends last of a tile adds up the pieces: who it is changes nothing.
#include <algorithm>

#include "base/integers.h"
#include "device/number.cuh"
#include "ops/linear/few_rows_cuda.h"

namespace longstride::ops::cuda {

namespace {

using device::Pack;

constexpr int kWarps = 8, kThreads = 32 * kWarps;
constexpr int kColumns = kFewColumns, kDepth = kFewDepth;
constexpr int kVec = 4;                                      // columns of a lane
constexpr int kLanes = kColumns / kVec;                      // that read one row of W
constexpr int kAtOnce = kThreads / kLanes;                   // values of k
constexpr int kAhead = 8;                                    // loads of a lane under way
static_assert(kLanes == 16 && kWarps * kColumns == kDepth);  // a warp holds two rows; see `memory`

template <class A, class Y>
struct Args {
  const A* x;
  const A* weight;
  const float* bias;  // or null
  Y* y;
  float* partial;
  unsigned* tickets;
  std::int64_t x_stride, w_stride, y_stride;
  int rows, in, out, depth, pieces;
  bool activation, vector;
};

template <class A>
__device__ Pack<float, kVec> load_weights(const A* from, int columns, bool vector) {
  Pack<float, kVec> w;
  if (vector && columns >= kVec) {
    const auto packed = device::load<kVec>(from);
#pragma unroll
    for (int c = 0; c < kVec; ++c) w.at[c] = device::to_float(packed.at[c]);
  } else {
#pragma unroll
    for (int c = 0; c < kVec; ++c) w.at[c] = c < columns ? device::to_float(from[c]) : 0;
  }
  return w;
}

template <class A, class Y>
__device__ void finish(const Args<A, Y>& a, int row, int column, float sum) {
  if (a.bias != nullptr) sum += a.bias[column];
  if (a.activation) sum = sum / (1 + expf(-1.702f * sum));
  a.y[row * a.y_stride + column] = device::from_float<Y>(sum);
}

// The weights that a lane multiplies next: rows k, k + kAtOnce, ... below `count` of its columns.
struct Ahead {
  Pack<float, kVec> at[kAhead];

  template <class A>
  __device__ void load(const A* w, std::int64_t stride, int k, int count, int columns,
                       bool vector) {
#pragma unroll
    for (int n = 0; n < kAhead; ++n)
      if (k + n * kAtOnce < count)
        at[n] = load_weights(w + (k + n * kAtOnce) * stride, columns, vector);
  }
};

// sum[r][c] += x[k, r] W[k, c] over this lane's k; `ahead` holds the first of them. x: [count,
// kRows].
template <int kRows, class A>
__device__ void accumulate(const A* w, std::int64_t stride, const float* x, int count, int columns,
                           bool vector, Ahead& ahead, float (&sum)[kRows][kVec]) {
  for (int k = threadIdx.x / kLanes; k < count; k += kAtOnce * kAhead) {
#pragma unroll
    for (int n = 0; n < kAhead; ++n) {
      if (k + n * kAtOnce >= count) continue;
      const float* const in = x + (k + n * kAtOnce) * kRows;
#pragma unroll
      for (int r = 0; r < kRows; ++r)
#pragma unroll
        for (int c = 0; c < kVec; ++c) sum[r][c] = fmaf(in[r], ahead.at[n].at[c], sum[r][c]);
    }
    ahead.load(w, stride, k + kAtOnce * kAhead, count, columns, vector);
  }
}

// parts[0] + parts[step] + ... in order, some loads at a time.
__device__ float sum_of_pieces(const float* parts, std::int64_t step, int pieces) {
  constexpr int kLoads = 8;
  float total = 0;
  for (int p = 0; p < pieces; p += kLoads) {
    float next[kLoads];
#pragma unroll
    for (int n = 0; n < kLoads; ++n) next[n] = p + n < pieces ? __ldcg(parts + (p + n) * step) : 0;
#pragma unroll
    for (int n = 0; n < kLoads; ++n) total += next[n];
  }
  return total;
}

// Whether this block is the last of its tile to come here, with the pieces of all others in sight.
__device__ bool last_of_tile(unsigned* ticket, int pieces) {
  __shared__ bool last;
  __threadfence();
  __syncthreads();
  if (threadIdx.x == 0) {
    last = atomicAdd(ticket, 1u) == static_cast<unsigned>(pieces - 1);
    if (last) *ticket = 0;
  }
  __syncthreads();
  __threadfence();
  return last;
}

template <int kRows, class A, class Y>
__global__ void __launch_bounds__(kThreads) few_rows_kernel(Args<A, Y> a) {
  __shared__ __align__(16) float memory[kDepth * kRows];  // x; then the sums of each warp
  const int tile = blockIdx.x * kColumns, piece = blockIdx.y;
  const int first = piece * a.depth, count = min(a.depth, a.in - first);
  const int lane = threadIdx.x % 32, mine = lane % kLanes * kVec;
  const A* const w = a.weight + first * a.w_stride + tile + mine;
  const int columns = a.out - tile - mine;
  Ahead ahead;  // under way while x is fetched
  ahead.load(w, a.w_stride, threadIdx.x / kLanes, count, columns, a.vector);
  constexpr int kAcross = kRows == 1 ? kThreads : kThreads / 4;
  for (int r = threadIdx.x / kAcross; r < kRows; r += kThreads / kAcross)
    for (int k = threadIdx.x % kAcross; k < count; k += kAcross)
      memory[k * kRows + r] = r < a.rows ? device::to_float(a.x[r * a.x_stride + first + k]) : 0;
  __syncthreads();
  float sum[kRows][kVec] = {};
  accumulate(w, a.w_stride, memory, count, columns, a.vector, ahead, sum);
  __syncthreads();
#pragma unroll
  for (int r = 0; r < kRows; ++r)
#pragma unroll
    for (int c = 0; c < kVec; ++c) {
      sum[r][c] += __shfl_xor_sync(~0u, sum[r][c], kLanes);
      if (lane < kLanes) memory[(threadIdx.x / 32 * kRows + r) * kColumns + mine + c] = sum[r][c];
    }
  __syncthreads();
  const std::int64_t piece_size = kFewRows * a.out;
  for (int e = threadIdx.x; e < a.rows * kColumns; e += kThreads) {
    const int r = e / kColumns, column = tile + e % kColumns;
    if (column >= a.out) continue;
    float total = memory[e];
#pragma unroll
    for (int n = 1; n < kWarps; ++n) total += memory[n * kRows * kColumns + e];
    if (a.pieces == 1)
      finish(a, r, column, total);
    else
      a.partial[piece * piece_size + r * a.out + column] = total;
  }
  if (a.pieces == 1 || !last_of_tile(a.tickets + blockIdx.x, a.pieces)) return;
  for (int e = threadIdx.x; e < a.rows * kColumns; e += kThreads) {
    const int r = e / kColumns, column = tile + e % kColumns;
    if (column >= a.out) continue;
    finish(a, r, column, sum_of_pieces(a.partial + r * a.out + column, piece_size, a.pieces));
  }
}

template <class A>
bool whole_packs(const A* data, std::int64_t stride) {
  return stride % kVec == 0 && reinterpret_cast<std::uintptr_t>(data) % (kVec * sizeof(A)) == 0;
}

template <class A, class Y>
void check(const FewRowsScratch& scratch, const FewRows<A, Y>& op, const FewRowsCut& cut) {
  const std::int64_t rows = op.x.rows, in = op.x.cols, out = op.y.cols;
  if (rows < 1 || rows > kFewRows)
    throw invalid_argument("few_rows: ", rows, " rows, want 1 to ", kFewRows);
  if (in < 1 || out < 1 || in >= 1 << 30 || out >= 1 << 24)
    throw invalid_argument("few_rows: a map from ", in, " to ", out, ", want 1 to 2^30 and 2^24");
  if (op.weight.rows != in || op.weight.cols != out || op.y.rows != rows ||
      (op.bias.size != 0 && op.bias.size != out))
    throw invalid_argument("few_rows: x ", rows, "x", in, ", W ", op.weight.rows, "x",
                           op.weight.cols, ", b ", op.bias.size, ", y ", op.y.rows, "x", out,
                           ", want them to fit");
  if (cut.pieces > 1 &&
      (scratch.partial.size() < cut.pieces * kFewRows * out || scratch.tickets.size() < cut.tiles))
    throw invalid_argument("few_rows: the scratch has ", scratch.partial.size(), " values, want ",
                           cut.pieces * kFewRows * out);
}

}  // namespace

FewRowsCut cut_few_rows(std::int64_t in, std::int64_t out) {
  constexpr std::int64_t kLeast = 64;
  FewRowsCut cut;
  cut.tiles = ceil_div(out, kFewColumns);
  const std::int64_t wanted = std::min(ceil_div(kFewBlocks, cut.tiles), ceil_div(in, kLeast));
  cut.depth = ceil_div(ceil_div(in, std::max(wanted, ceil_div(in, kFewDepth))), 16) * 16;
  cut.pieces = ceil_div(in, cut.depth);
  return cut;
}

// Of a map with fewer columns there may be more pieces, but never more values than this:
// pieces <= max(blocks / tiles + 1, in / depth rounded up) and out <= tiles columns.
std::int64_t few_rows_partials(std::int64_t most_in, std::int64_t most_out) {
  const std::int64_t columns = ceil_div(most_out, kFewColumns) * kFewColumns;
  return kFewRows *
         std::max(ceil_div(most_in, kFewDepth) * columns, kFewBlocks * kFewColumns + columns);
}

FewRowsScratch::FewRowsScratch(std::int64_t most_in, std::int64_t most_out)
    : partial(few_rows_partials(most_in, most_out)), tickets(ceil_div(most_out, kFewColumns)) {}

template <class A, class Y>
void few_rows(FewRowsScratch& scratch, device::Stream stream, const FewRows<A, Y>& op) {
  const FewRowsCut cut = cut_few_rows(op.x.cols, op.y.cols);
  check(scratch, op, cut);
  const Args<A, Y> args{op.x.data,
                        op.weight.data,
                        op.bias.data,
                        op.y.data,
                        scratch.partial.data(),
                        scratch.tickets.data(),
                        op.x.stride,
                        op.weight.stride,
                        op.y.stride,
                        static_cast<int>(op.x.rows),
                        static_cast<int>(op.x.cols),
                        static_cast<int>(op.y.cols),
                        static_cast<int>(cut.depth),
                        static_cast<int>(cut.pieces),
                        op.activation,
                        whole_packs(op.weight.data, op.weight.stride)};
  const dim3 grid(static_cast<unsigned>(cut.tiles), static_cast<unsigned>(cut.pieces));
  if (op.x.rows == 1)
    few_rows_kernel<1><<<grid, kThreads, 0, stream>>>(args);
  else if (op.x.rows <= 4)
    few_rows_kernel<4><<<grid, kThreads, 0, stream>>>(args);
  else
    few_rows_kernel<16><<<grid, kThreads, 0, stream>>>(args);
  device::launched(stream, "few_rows ", op.x.rows, "x", op.x.cols, "x", op.y.cols);
}

template void few_rows(FewRowsScratch&, device::Stream, const FewRows<float, float>&);
template void few_rows(FewRowsScratch&, device::Stream, const FewRows<bf16, bf16>&);
template void few_rows(FewRowsScratch&, device::Stream, const FewRows<bf16, float>&);

}  // namespace longstride::ops::cuda
