// The gradient of the tables: which rows of dy a row of a table gets is a list; lists are cut into
// pieces of kPiece rows, each summed by itself, and the pieces of a list are added in order. No
// float meets an atomic, and the bits depend on the shapes and the tokens only.
//
//   bytes  the lists are the rows sorted by the byte before them (a counting sort that keeps their
//          order; the start symbol is the 257th byte)
//   axes   a list is a formula. With several sequences the positions are summed over them first,
//          and what remains is the size of one sequence, often in L2; with a single axis these sums
//          are its gradient.
//
// Bytes: dy is read once for the bytes and once for the positions, 8 an element (0.067 ms for
// 49152 x 512 at 3 TB/s). Bound: memory; a thread has kAhead loads of 16 bytes under way.
#include <algorithm>
#include <cstdint>

#include "base/integers.h"
#include "device/number.cuh"
#include "ops/embedding/embedding_check.h"
#include "ops/embedding/embedding_cuda.h"
#include "ops/embedding/row_sort_cuda.h"

namespace longstride::ops::cuda {

namespace {

using device::load, device::Pack, device::store;

constexpr int kThreads = 256, kAhead = 8, kWarps = kThreads / 32;

template <int N>
__device__ void add(Pack<float, N>& sum, const Pack<float, N>& x) {
#pragma unroll
  for (int i = 0; i < N; ++i) sum.at[i] += x.at[i];
}

// The sum over j in [begin, end) of the packs at place(j), in order; null: nothing there.
template <int N, class Place>
__device__ Pack<float, N> sum_of(std::int64_t begin, std::int64_t end, const Place& place) {
  Pack<float, N> sum = {};
  for (std::int64_t j = begin; j < end; j += kAhead) {
    Pack<float, N> x[kAhead] = {};
#pragma unroll
    for (int k = 0; k < kAhead; ++k)
      if (j + k < end)
        if (const float* from = place(j + k)) x[k] = load<N>(from);
#pragma unroll
    for (int k = 0; k < kAhead; ++k) add(sum, x[k]);
  }
  return sum;
}

struct Source {  // dy, or its sums over the sequences
  const float* data;
  std::int64_t stride;
  int cols;
};

struct Piece {
  unsigned list, begin, end;  // [begin, end) of the list, or of all rows where they are sorted
};

// Lists of sorted rows; see SortedRows.
struct ByteLists {
  const int *rows, *list_start, *piece_start;
  __device__ std::int64_t pieces() const { return piece_start[kLists]; }
  // The lists are few: the one that holds a piece is found by bisection.
  __device__ Piece piece(std::int64_t p) const {
    unsigned low = 0, high = kLists;
    while (high - low > 1) {
      const unsigned middle = (low + high) / 2;
      (piece_start[middle] <= p ? low : high) = middle;
    }
    const auto begin = static_cast<unsigned>(list_start[low] + (p - piece_start[low]) * kPiece);
    return {low, begin, min(begin + unsigned{kPiece}, unsigned(list_start[low + 1]))};
  }
  __device__ std::int64_t row(const Piece&, unsigned j) const { return rows[j]; }
  __device__ void range(int list, std::int64_t& begin, std::int64_t& end) const {
    begin = piece_start[list], end = piece_start[list + 1];
  }
};

// Position q stands at q / below % extent on the axis, so (j / below * extent + list) * below + j %
// below is the j-th of a list. Each list has `each` pieces; the last ones may be empty.
struct AxisLists {
  unsigned extent, below, positions, each;
  __device__ std::int64_t pieces() const { return std::int64_t{extent} * each; }
  __device__ Piece piece(std::int64_t p) const {
    const auto begin = static_cast<unsigned>(p % each) * unsigned{kPiece};
    return {static_cast<unsigned>(p / each), begin, begin + unsigned{kPiece}};
  }
  __device__ std::int64_t row(const Piece& piece, unsigned j) const {
    const std::int64_t lists_before = std::int64_t{j / below} * extent + piece.list;
    const std::int64_t q = lists_before * below + j % below;
    return q < positions ? q : -1;
  }
  __device__ void range(int list, std::int64_t& begin, std::int64_t& end) const {
    begin = std::int64_t{list} * each, end = begin + each;
  }
};

// at / by and at % by; short where at is.
__device__ std::int64_t divide(std::int64_t at, int by, int& rest) {
  if (at >> 32 == 0) {
    const auto narrow = static_cast<unsigned>(at);
    rest = static_cast<int>(narrow % static_cast<unsigned>(by));
    return narrow / static_cast<unsigned>(by);
  }
  rest = static_cast<int>(at % by);
  return at / by;
}

// partial[p] = the sum of piece p. A thread a pack of a piece.
template <int N, class Lists>
__global__ void __launch_bounds__(kThreads)
    sum_pieces_kernel(Lists lists, Source from, int packs, float* partial) {
  const std::int64_t at = std::int64_t{blockIdx.x} * kThreads + threadIdx.x;
  int pack;
  const std::int64_t p = divide(at, packs, pack);
  if (p >= lists.pieces()) return;
  const int column = pack * N;
  const Piece piece = lists.piece(p);
  store(partial + p * from.cols + column,
        sum_of<N>(piece.begin, piece.end, [&](std::int64_t j) -> const float* {
          const std::int64_t row = lists.row(piece, static_cast<unsigned>(j));
          return row < 0 ? nullptr : from.data + row * from.stride + column;
        }));
}

struct Target {
  float* data;
  std::int64_t stride;
  float* last;  // of list kLists - 1, where set
};

// target[list] += the pieces of the list. A block a list and 32 packs: its warps take every
// kWarps-th piece, and are added in order.
template <int N, class Lists>
__global__ void __launch_bounds__(kThreads)
    add_pieces_kernel(Lists lists, const float* partial, int cols, Target target) {
  __shared__ Pack<float, N> sums[kWarps][32];
  const int list = static_cast<int>(blockIdx.x), lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const int column = (static_cast<int>(blockIdx.y) * 32 + lane) * N;
  std::int64_t begin, end;
  lists.range(list, begin, end);
  if (begin == end) return;
  float* const to =
      (list == kLists - 1 && target.last != nullptr ? target.last
                                                    : target.data + list * target.stride) +
      column;
  Pack<float, N> into = {};
  if (column < cols) {
    if (warp == 0) into = load<N>(to);
    sums[warp][lane] = sum_of<N>(
        0, (end - begin - warp + kWarps - 1) / kWarps,
        [&](std::int64_t j) { return partial + (begin + warp + j * kWarps) * cols + column; });
  }
  __syncthreads();
  if (warp > 0 || column >= cols) return;
  Pack<float, N> sum = sums[0][lane];
  for (int w = 1; w < kWarps; ++w) add(sum, sums[w][lane]);
  add(into, sum);
  store(to, into);
}

// to[q] (+)= sum_b dy[b, q + 1]
template <int N>
__global__ void __launch_bounds__(kThreads)
    sum_sequences_kernel(Source dy, std::int64_t batch, std::int64_t length, int packs, float* to,
                         std::int64_t stride, bool into) {
  const std::int64_t at = std::int64_t{blockIdx.x} * kThreads + threadIdx.x;
  int pack;
  const std::int64_t q = divide(at, packs, pack);
  if (q >= length - 1) return;
  const int column = pack * N;
  Pack<float, N> old = {};
  if (into) old = load<N>(to + q * stride + column);
  const Pack<float, N> sum = sum_of<N>(0, batch, [&](std::int64_t b) {
    return dy.data + (b * length + q + 1) * dy.stride + column;
  });
  add(old, sum);
  store(to + q * stride + column, old);
}

unsigned blocks(std::int64_t threads) { return static_cast<unsigned>(ceil_div(threads, kThreads)); }

// Where an axis stands among the positions of a sequence.
AxisLists axis_lists(const std::vector<std::int64_t>& extents, std::size_t axis,
                     std::int64_t positions) {
  std::int64_t below = 1;
  for (std::size_t a = axis + 1; a < extents.size() && below < positions; ++a) below *= extents[a];
  below = std::min(below, positions);
  const std::int64_t longest = ceil_div(positions, below * extents[axis]) * below;
  const auto narrow = [](std::int64_t x) { return static_cast<unsigned>(x); };
  return {narrow(extents[axis]), narrow(below), narrow(positions),
          narrow(ceil_div(longest, kPiece))};
}

std::int64_t piece_count(const AxisLists& lists) { return std::int64_t{lists.extent} * lists.each; }

// The parts of the scratch, in floats; each starts at a multiple of 16 bytes.
struct Layout {
  std::int64_t sort = 0, sums = 0, partial = 0, size = 0;
  Layout(std::int64_t batch, std::int64_t length, std::int64_t width,
         const std::vector<std::int64_t>& extents) {
    const std::int64_t rows = batch * length, positions = std::max<std::int64_t>(length - 1, 0);
    std::int64_t pieces = most_pieces(rows);
    if (extents.size() > 1 && positions > 0)
      for (std::size_t a = 0; a < extents.size(); ++a)
        pieces = std::max(pieces, piece_count(axis_lists(extents, a, positions)));
    const auto up = [](std::int64_t n) { return ceil_div(n, 4) * 4; };
    sums = up(sort_ints(rows));
    partial = sums + (batch > 1 && extents.size() > 1 ? up(positions * width) : 0);
    size = partial + up(pieces * width);
  }
};

template <int N>
class Gradient {
 public:
  Gradient(device::Stream stream, const EmbeddingBackward& op,
           const std::vector<std::int64_t>& extents)
      : stream_(stream),
        op_(op),
        extents_(extents),
        layout_(op.batch, op.length, op.dy.cols, extents),
        cols_(static_cast<int>(op.dy.cols)),
        packs_(cols_ / N) {}

  void run() const {
    const Source dy{op_.dy.data, op_.dy.stride, cols_};
    const std::int64_t rows = op_.batch * op_.length, positions = op_.length - 1;
    const SortedRows sorted = sort_rows(stream_, op_.tokens, op_.batch, op_.length,
                                        reinterpret_cast<int*>(op_.scratch.data + layout_.sort));
    add_lists(ByteLists{sorted.rows, sorted.list_start, sorted.piece_start}, dy, most_pieces(rows),
              kLists, {op_.dbytes.data, op_.dbytes.stride, op_.dstart.data});
    if (positions < 1) return;
    if (extents_.size() == 1)
      return sum_sequences(dy, op_.daxes[0].data, op_.daxes[0].stride, true);
    Source from{dy.data + dy.stride, dy.stride, cols_};
    if (op_.batch > 1 && !extents_.empty()) {
      float* const sums = op_.scratch.data + layout_.sums;
      sum_sequences(dy, sums, cols_, false);
      from = {sums, cols_, cols_};
    }
    for (std::size_t a = 0; a < extents_.size(); ++a) {
      const AxisLists lists = axis_lists(extents_, a, positions);
      add_lists(lists, from, piece_count(lists), lists.extent,
                {op_.daxes[a].data, op_.daxes[a].stride, nullptr});
    }
  }

 private:
  template <class Lists>
  void add_lists(const Lists& lists, const Source& from, std::int64_t pieces, std::int64_t count,
                 const Target& target) const {
    float* const partial = op_.scratch.data + layout_.partial;
    sum_pieces_kernel<N>
        <<<blocks(pieces * packs_), kThreads, 0, stream_>>>(lists, from, packs_, partial);
    const dim3 grid(static_cast<unsigned>(count),
                    static_cast<unsigned>(ceil_div(packs_, std::int64_t{32})));
    add_pieces_kernel<N><<<grid, kThreads, 0, stream_>>>(lists, partial, cols_, target);
  }

  void sum_sequences(const Source& dy, float* to, std::int64_t stride, bool into) const {
    sum_sequences_kernel<N><<<blocks((op_.length - 1) * packs_), kThreads, 0, stream_>>>(
        dy, op_.batch, op_.length, packs_, to, stride, into);
  }

  device::Stream stream_;
  const EmbeddingBackward& op_;
  const std::vector<std::int64_t>& extents_;
  Layout layout_;
  int cols_, packs_;
};

}  // namespace

std::int64_t embedding_backward_scratch(std::int64_t batch, std::int64_t length, std::int64_t width,
                                        const std::vector<std::int64_t>& axes) {
  return Layout(batch, length, width, axes).size;
}

void embedding_backward(device::Stream stream, const EmbeddingBackward& op) {
  constexpr auto kWho = "embedding_backward";
  const std::int64_t rows = op.batch * op.length, d = op.dy.cols;
  check_tokens(kWho, op.tokens, op.batch, op.length);
  check_tables(kWho, op.dbytes, op.daxes, op.dstart, op.length - 1);
  want_shape(kWho, "dy", op.dy, rows, d);
  want_size(kWho, "dstart", op.dstart, d);
  std::vector<std::int64_t> extents;
  for (const Matrix<float>& axis : op.daxes) extents.push_back(axis.rows);
  const std::int64_t scratch = embedding_backward_scratch(op.batch, op.length, d, extents);
  if (op.scratch.size < scratch || reinterpret_cast<std::uintptr_t>(op.scratch.data) % 16 != 0)
    throw invalid_argument(kWho, ": scratch of ", op.scratch.size, " floats at ", op.scratch.data,
                           ", want ", scratch, " at a multiple of 16 bytes");
  if (rows == 0 || d == 0) return;
  if (packs_of_four(op.dy) && packs_of_four(op.dbytes) && packs_of_four(op.dstart) &&
      std::all_of(op.daxes.begin(), op.daxes.end(), [](auto axis) { return packs_of_four(axis); }))
    Gradient<4>(stream, op, extents).run();
  else
    Gradient<1>(stream, op, extents).run();
  device::launched(stream, kWho, " ", rows, "x", d);
}

}  // namespace longstride::ops::cuda
