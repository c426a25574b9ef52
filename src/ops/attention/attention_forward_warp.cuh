// Sixteen queries of attention forward: what a warp keeps in registers while it walks tiles of
// keys.
#pragma once

#include "ops/attention/attention_forward_walk.cuh"
#include "ops/attention/mma.cuh"

namespace longstride::ops::cuda {

// kWarps warps with 16 queries each. Tiles of kKeys keys, kStages of them in flight; a warp takes
// kStep of them at a time and leaves out those that none of its rows sees. kMinBlocks a
// multiprocessor, which bounds the registers.
template <int kQk_, int kV_, int kWarps_, int kKeys_, int kStep_, int kStages_, int kMinBlocks_>
struct ForwardShape {
  static constexpr int kQk = kQk_, kV = kV_, kWarps = kWarps_, kKeys = kKeys_;
  static constexpr int kStep = kStep_;
  static constexpr int kStages = kStages_, kMinBlocks = kMinBlocks_;
  static constexpr int kThreads = kWarps * 32, kWarpRows = 16;
  static constexpr int kRows = kWarps * kWarpRows;
  static constexpr bool kKeepsQ = kQk <= 128;  // Q in registers; else read every time
  static constexpr int kSlots = kStages + 1;
  // Shared memory: Q and later O, warp by warp; stages of K and V; masks; the walk.
  static constexpr int kWarpBytes = kWarpRows * (kQk > kV ? kQk : kV) * 2;
  static constexpr int kStageBytes = kKeys * (kQk + kV) * 2;
  static constexpr int kMaskBytes = kRows * kKeys / 8;
  static constexpr int kStagesAt = kWarps * kWarpBytes;
  static constexpr int kMaskAt = kStagesAt + kStages * kStageBytes;
  static constexpr int kWalkAt = kMaskAt + kMaskBytes;
  using Walk = KeyWalk<kKeys, kSlots>;
  static constexpr int kBytes = kWalkAt + static_cast<int>(sizeof(Walk));
  static_assert(kBytes <= 99 * 1024, "what a block has on every card since sm_80");
  static_assert(kStages >= 2 && kKeys % kStep == 0 && kStep % 32 == 0);
};

// The state of a warp's rows; a thread has rows g and g + 8 of 16 (mma.cuh).
template <class Shape>
struct ForwardRows {
  float out[Shape::kV / 8][4];
  float max[2], sum[2];
  // Key indices of the current range: those that the row sees, that any and that all rows see.
  std::int32_t from[2], to[2];
  std::int32_t any_from, any_to, all_from, all_to;

  __device__ __forceinline__ void clear() {
#pragma unroll
    for (int n = 0; n < Shape::kV / 8; ++n) out[n][0] = out[n][1] = out[n][2] = out[n][3] = 0;
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      max[h] = -INFINITY;
      sum[h] = 0;
    }
  }

  // first: the warp's first row of the tile. Each thread finds what one row sees. Returns the range
  // of the whole tile where that is one of a part without lists.
  __device__ __forceinline__ KeyRange begin_range(const DevicePart& part, std::int32_t lane,
                                                  const QueryTile& tile, int first) {
    const int thread = static_cast<int>(threadIdx.x & 31), g = thread >> 2;
    const bool mine = thread < 16;
    const int row = mine ? first + thread : thread == 16 ? 0 : tile.count - 1;
    KeyRange seen;
    if (row < tile.count) seen = reach_in_lane(part, lane, tile.position(row));
    const bool some = mine && !seen.empty();
    any_from = __reduce_min_sync(0xffffffffu, some ? seen.begin : kPositionLimit);
    any_to = __reduce_max_sync(0xffffffffu, some ? seen.end : 0);
    all_from = __reduce_max_sync(0xffffffffu, mine ? seen.begin : 0);
    all_to = __reduce_min_sync(0xffffffffu, mine ? seen.end : kPositionLimit);
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      from[h] = __shfl_sync(0xffffffffu, seen.begin, 8 * h + g);
      to[h] = __shfl_sync(0xffffffffu, seen.end, 8 * h + g);
    }
    return {__shfl_sync(0xffffffffu, seen.begin, 16), __shfl_sync(0xffffffffu, seen.end, 17)};
  }
};

// Bits n of a word with n >= from; from may be anything.
__device__ __forceinline__ std::uint32_t bits_from(std::int32_t from) {
  return __funnelshift_lc(0, 0xffffffffu, static_cast<std::uint32_t>(larger(from, 0)));
}

template <class A, class Shape>
struct ForwardWarp {
  static constexpr int kKeyBlocks = Shape::kStep / 8;
  static constexpr int kQkSteps = Shape::kQk / 16, kQkKept = Shape::kKeepsQ ? kQkSteps : 1;

  char* queries;  // shared memory: the warp's rows of Q
  std::uint32_t q[kQkKept][4];
  std::uint32_t sign;  // flips that of Q where the scale is negative
  float scale_log2;    // |scale| log2(e)
  ForwardRows<Shape> rows;
  float s[kKeyBlocks][4];

  __device__ __forceinline__ void load_q(std::uint32_t (&to)[4], int k) {
    const int lane = static_cast<int>(threadIdx.x & 31);
    load_matrices(to,
                  shared_address(queries) + piece_at<Shape::kQk>(lane & 15, 2 * k + (lane >> 4)));
#pragma unroll
    for (std::uint32_t& x : to) x ^= sign;
  }

  __device__ __forceinline__ void keep_q() {
    if constexpr (Shape::kKeepsQ) {
#pragma unroll
      for (int k = 0; k < kQkSteps; ++k) load_q(q[k], k);
    }
  }

  // s = Q K^T for the keys from row `first` of the stage on
  __device__ __forceinline__ void scores(const char* keys, int first) {
    const int lane = static_cast<int>(threadIdx.x & 31);
    const int key_row = first + (lane >> 4) * 8 + (lane & 7), key_piece = lane >> 3 & 1;
#pragma unroll
    for (int n = 0; n < kKeyBlocks; ++n) s[n][0] = s[n][1] = s[n][2] = s[n][3] = 0;
#pragma unroll
    for (int k = 0; k < kQkSteps; ++k) {
      if constexpr (!Shape::kKeepsQ) load_q(q[0], k);
      const auto& a = q[Shape::kKeepsQ ? k : 0];
#pragma unroll
      for (int n = 0; n < kKeyBlocks; n += 2) {
        std::uint32_t b[4];
        load_matrices(
            b, shared_address(keys) + piece_at<Shape::kQk>(n * 8 + key_row, 2 * k + key_piece));
        multiply_add<A>(s[n], a, b[0], b[1]);
        multiply_add<A>(s[n + 1], a, b[2], b[3]);
      }
    }
  }

  // -inf for pairs that are not kept. words: one bit a pair, of parts that decide pair by pair;
  // else null, and pairs are kept by range. first: index of the first key.
  __device__ __forceinline__ void mask(const std::uint32_t* words, std::int32_t first) {
    const int g = static_cast<int>(threadIdx.x & 31) >> 2;
    const int column = 2 * static_cast<int>(threadIdx.x & 3);
#pragma unroll
    for (int h = 0; h < 2; ++h)
#pragma unroll
      for (int w = 0; w < Shape::kStep / 32; ++w) {
        const std::int32_t begin = first + w * 32;
        std::uint32_t word = words != nullptr
                                 ? words[(h * 8 + g) * (Shape::kKeys / 32) + w]
                                 : bits_from(rows.from[h] - begin) & ~bits_from(rows.to[h] - begin);
        word >>= column;
#pragma unroll
        for (int n = 0; n < 4; ++n)
#pragma unroll
          for (int e = 0; e < 2; ++e)
            if ((word >> (n * 8 + e) & 1) == 0) s[w * 4 + n][2 * h + e] = -INFINITY;
      }
  }

  // s becomes P; max, sum and out are brought up to date.
  __device__ __forceinline__ void soften() {
    float shrink[2];
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      float top = rows.max[h];
#pragma unroll
      for (int n = 0; n < kKeyBlocks; ++n) top = fmaxf(top, fmaxf(s[n][2 * h], s[n][2 * h + 1]));
      top = fmaxf(top, __shfl_xor_sync(0xffffffffu, top, 1));
      top = fmaxf(top, __shfl_xor_sync(0xffffffffu, top, 2));
      const float base = top == -INFINITY ? 0 : top * scale_log2;
      shrink[h] = fast_exp2(rows.max[h] * scale_log2 - base);
      rows.max[h] = top;
      float sum = 0;
#pragma unroll
      for (int n = 0; n < kKeyBlocks; ++n)
#pragma unroll
        for (int e = 0; e < 2; ++e) {
          const float p = fast_exp2(fmaf(s[n][2 * h + e], scale_log2, -base));
          s[n][2 * h + e] = p;
          sum += p;
        }
      rows.sum[h] = fmaf(rows.sum[h], shrink[h], sum);
    }
    if (__all_sync(0xffffffffu, shrink[0] == 1 && shrink[1] == 1)) return;
#pragma unroll
    for (int n = 0; n < Shape::kV / 8; ++n)
#pragma unroll
      for (int e = 0; e < 4; ++e) rows.out[n][e] *= shrink[e / 2];
  }

  // out += P V for the values from row `first` of the stage on
  __device__ __forceinline__ void absorb(const char* values, int first) {
    const int lane = static_cast<int>(threadIdx.x & 31);
#pragma unroll
    for (int j = 0; j < kKeyBlocks / 2; ++j) {
      const std::uint32_t p[4] = {
          packed<A>(s[2 * j][0], s[2 * j][1]), packed<A>(s[2 * j][2], s[2 * j][3]),
          packed<A>(s[2 * j + 1][0], s[2 * j + 1][1]), packed<A>(s[2 * j + 1][2], s[2 * j + 1][3])};
#pragma unroll
      for (int n = 0; n < Shape::kV / 8; n += 2) {
        std::uint32_t v[4];
        load_matrices_transposed(
            v, shared_address(values) +
                   piece_at<Shape::kV>(first + j * 16 + (lane & 15), n + (lane >> 4)));
        multiply_add<A>(rows.out[n], p, v[0], v[1]);
        multiply_add<A>(rows.out[n + 1], p, v[2], v[3]);
      }
    }
  }
};

}  // namespace longstride::ops::cuda
