// Attention forward in float32, for exactness: no tensor cores, products by FMA out of shared
// memory, the same walk as attention_forward_mma.cuh.
//
// A block of 16 x 16 threads holds kRows queries; thread (y, x) has rows y + 16 a, of the scores
// the keys x + 16 b, of O the columns kVector (x + 16 c) and on. Work: 2 (d_qk + d_v) FLOPs a pair,
// bound by FMA and by shared memory: 4 x 4 results a thread take 2 loads of 16 bytes a 16 FMA.
#include "device/number.cuh"
#include "ops/attention/attention_forward_walk.cuh"

namespace longstride::ops::cuda {

namespace {

template <int kWidth_>
struct FloatShape {
  static constexpr int kWidth = kWidth_, kThreads = 256;
  static constexpr int kRows = kWidth <= 128 ? 64 : 16, kKeys = kWidth <= 64 ? 64 : 32;
  static constexpr int kVector = kWidth >= 64 ? 4 : 2, kColumns = kWidth / 16;
  static constexpr int kPitch = kWidth + 4, kScorePitch = kKeys + 4;
  static constexpr int kRowsAThread = kRows / 16, kKeysAThread = kKeys / 16;
  // Floats of shared memory: Q, K, V, P; then the masks and the walk.
  static constexpr int kKeysAt = kRows * kPitch, kValuesAt = kKeysAt + kKeys * kPitch;
  static constexpr int kScoresAt = kValuesAt + kKeys * kPitch;
  static constexpr int kMaskAt = kScoresAt + kRows * kScorePitch;
  static constexpr int kWalkAt = kMaskAt + kRows * kKeys / 32;
  static constexpr int kSlots = 2;
  using Walk = KeyWalk<kKeys, kSlots>;
  static constexpr int kBytes = kWalkAt * 4 + static_cast<int>(sizeof(Walk));
  static_assert(kWalkAt % 4 == 0 && kBytes <= 99 * 1024);
};

// Rows of a head, zeros beyond their width and where position(r) is negative.
template <class Shape, int kRows, class Position>
__device__ __forceinline__ void load_rows(float* shared, const float* head, std::int64_t row_stride,
                                          std::int64_t width, bool whole,
                                          const Position& position) {
  constexpr int kPieces = Shape::kWidth / 4;
  for (int at = static_cast<int>(threadIdx.x); at < kRows * kPieces; at += Shape::kThreads) {
    const int r = at / kPieces, c = at % kPieces * 4;
    const std::int32_t i = position(r);
    float4 x = {0, 0, 0, 0};
    if (i >= 0 && c < width) {
      const float* const from = head + i * row_stride + c;
      if (whole) {
        x = *reinterpret_cast<const float4*>(from);
      } else {
        x.x = from[0];
        if (c + 1 < width) x.y = from[1];
        if (c + 2 < width) x.z = from[2];
        if (c + 3 < width) x.w = from[3];
      }
    }
    *reinterpret_cast<float4*>(shared + r * Shape::kPitch + c) = x;
  }
}

// A thread's rows.
template <class Shape>
struct FloatRows {
  static constexpr int kRows = Shape::kRowsAThread, kKeys = Shape::kKeysAThread;
  float out[kRows][Shape::kColumns], max[kRows], sum[kRows];
  std::int32_t from[kRows], count[kRows];
  float s[kRows][kKeys];

  __device__ __forceinline__ void clear() {
#pragma unroll
    for (int a = 0; a < kRows; ++a) {
      max[a] = -INFINITY;
      sum[a] = 0;
#pragma unroll
      for (int c = 0; c < Shape::kColumns; ++c) out[a][c] = 0;
    }
  }

  __device__ __forceinline__ void begin_range(const KeySlot& slot, const QueryTile& tile, int y) {
#pragma unroll
    for (int a = 0; a < kRows; ++a) {
      KeyRange seen;
      const int r = y + 16 * a;
      if (r < tile.count) seen = reach_in_lane(*slot.part, slot.lane, tile.position(r));
      from[a] = seen.begin;
      count[a] = seen.end - seen.begin;
    }
  }

  __device__ __forceinline__ void scores(const float* q, const float* k, int y, int x,
                                         float scale) {
#pragma unroll
    for (int a = 0; a < kRows; ++a)
#pragma unroll
      for (int b = 0; b < kKeys; ++b) s[a][b] = 0;
#pragma unroll 4
    for (int d = 0; d < Shape::kWidth; d += 4) {
      float4 qd[kRows], kd[kKeys];
#pragma unroll
      for (int a = 0; a < kRows; ++a)
        qd[a] = *reinterpret_cast<const float4*>(q + (y + 16 * a) * Shape::kPitch + d);
#pragma unroll
      for (int b = 0; b < kKeys; ++b)
        kd[b] = *reinterpret_cast<const float4*>(k + (x + 16 * b) * Shape::kPitch + d);
#pragma unroll
      for (int a = 0; a < kRows; ++a)
#pragma unroll
        for (int b = 0; b < kKeys; ++b) {
          s[a][b] = fmaf(qd[a].x, kd[b].x, s[a][b]);
          s[a][b] = fmaf(qd[a].y, kd[b].y, s[a][b]);
          s[a][b] = fmaf(qd[a].z, kd[b].z, s[a][b]);
          s[a][b] = fmaf(qd[a].w, kd[b].w, s[a][b]);
        }
    }
#pragma unroll
    for (int a = 0; a < kRows; ++a)
#pragma unroll
      for (int b = 0; b < kKeys; ++b) s[a][b] *= scale;
  }

  // words: of masked parts, else null.
  __device__ __forceinline__ void mask(const std::uint32_t* words, std::int32_t first, int y,
                                       int x) {
#pragma unroll
    for (int a = 0; a < kRows; ++a)
#pragma unroll
      for (int b = 0; b < kKeys; ++b) {
        const int t = x + 16 * b;
        bool kept =
            static_cast<std::uint32_t>(first + t - from[a]) < static_cast<std::uint32_t>(count[a]);
        if (words != nullptr)
          kept = (words[(y + 16 * a) * (Shape::kKeys / 32) + t / 32] >> (t % 32) & 1) != 0;
        if (!kept) s[a][b] = -INFINITY;
      }
  }

  // s becomes P, which goes to p.
  __device__ __forceinline__ void soften(float* p, int y, int x) {
#pragma unroll
    for (int a = 0; a < kRows; ++a) {
      float top = max[a];
#pragma unroll
      for (int b = 0; b < kKeys; ++b) top = fmaxf(top, s[a][b]);
#pragma unroll
      for (int way = 1; way < 16; way *= 2)
        top = fmaxf(top, __shfl_xor_sync(0xffffffffu, top, way));
      const float base = top == -INFINITY ? 0 : top, shrink = expf(max[a] - base);
      max[a] = top;
      float total = 0;
#pragma unroll
      for (int b = 0; b < kKeys; ++b) {
        const float e = expf(s[a][b] - base);
        p[(y + 16 * a) * Shape::kScorePitch + x + 16 * b] = e;
        total += e;
      }
      sum[a] = fmaf(sum[a], shrink, total);
#pragma unroll
      for (int c = 0; c < Shape::kColumns; ++c) out[a][c] *= shrink;
    }
    __syncwarp();
  }

  __device__ __forceinline__ void absorb(const float* p, const float* v, int y, int x) {
    constexpr int kVector = Shape::kVector;
#pragma unroll 2
    for (int t = 0; t < Shape::kKeys; t += 4) {
      float4 pt[kRows];
#pragma unroll
      for (int a = 0; a < kRows; ++a)
        pt[a] = *reinterpret_cast<const float4*>(p + (y + 16 * a) * Shape::kScorePitch + t);
#pragma unroll
      for (int n = 0; n < 4; ++n)
#pragma unroll
        for (int c = 0; c < Shape::kColumns / kVector; ++c) {
          const auto values =
              device::load<kVector>(v + (t + n) * Shape::kPitch + kVector * (x + 16 * c));
#pragma unroll
          for (int a = 0; a < kRows; ++a) {
            const float weight = n == 0 ? pt[a].x : n == 1 ? pt[a].y : n == 2 ? pt[a].z : pt[a].w;
#pragma unroll
            for (int e = 0; e < kVector; ++e)
              out[a][c * kVector + e] = fmaf(weight, values.at[e], out[a][c * kVector + e]);
          }
        }
    }
    __syncwarp();
  }

  __device__ __forceinline__ void store(const ForwardArguments<float>& arguments,
                                        const QueryTile& tile, int y, int x) {
    const std::int64_t h = tile.pass.head;
    float* const lse = arguments.lse + (tile.batch * arguments.q.heads + h) * arguments.length;
#pragma unroll
    for (int a = 0; a < kRows; ++a) {
      const bool valid = y + 16 * a < tile.count;
      const std::int64_t i = valid ? tile.position(y + 16 * a) : 0;
      float total = sum[a];
#pragma unroll
      for (int way = 1; way < 16; way *= 2) total += __shfl_xor_sync(0xffffffffu, total, way);
      const RowEnd end(max[a], total, tile.pass.merges != 0 && valid ? lse[i] : -INFINITY);
      __syncwarp();
      if (!valid) continue;
      if (x == 0) lse[i] = end.lse;
      float* const to = row_of(arguments.out, tile.batch, i, h);
#pragma unroll
      for (int c = 0; c < Shape::kColumns; ++c) {
        const int column = Shape::kVector * (x + 16 * (c / Shape::kVector)) + c % Shape::kVector;
        if (column >= arguments.out.width) continue;
        float value = out[a][c] * end.here;
        if (end.before != 0) value = fmaf(end.before, to[column], value);
        to[column] = value;
      }
    }
  }
};

template <class Shape>
__global__ void __launch_bounds__(Shape::kThreads)
    forward_fma(const __grid_constant__ ForwardArguments<float> a) {
  extern __shared__ __align__(128) float shared[];
  const QueryTile tile = query_tile(a, Shape::kRows);
  if (tile.count <= 0) return;
  const int x = static_cast<int>(threadIdx.x) % 16, y = static_cast<int>(threadIdx.x) / 16;
  const bool whole = a.whole_pieces != 0;
  const std::int64_t h = tile.pass.head;
  auto& walk = *reinterpret_cast<typename Shape::Walk*>(shared + Shape::kWalkAt);
  auto* const words = reinterpret_cast<std::uint32_t*>(shared + Shape::kMaskAt);
  float *const k = shared + Shape::kKeysAt, *const v = shared + Shape::kValuesAt;
  float* const p = shared + Shape::kScoresAt;

  load_rows<Shape, Shape::kRows>(shared, row_of(a.q, tile.batch, 0, h), a.q.row_stride, a.q.width,
                                 whole,
                                 [&](int r) { return r < tile.count ? tile.position(r) : -1; });
  if (threadIdx.x < 32) {
    if (threadIdx.x == 0) walk.begin(tile, a.parts);
    __syncwarp();
    walk.write(0);
  }
  __syncthreads();
  if (walk.ring[0].part == nullptr && tile.pass.merges != 0) return;

  FloatRows<Shape> rows;
  rows.clear();
  std::int32_t range = -1;
  for (int n = 0;; ++n) {
    const KeySlot& slot = walk.ring[n % Shape::kSlots];
    if (slot.part == nullptr) break;
    const std::int32_t* const positions = walk.position[n % Shape::kSlots];
    const auto position = [&](int r) { return positions[r]; };
    load_rows<Shape, Shape::kKeys>(k, row_of(a.k, tile.batch, 0, h), a.k.row_stride, a.k.width,
                                   whole, position);
    load_rows<Shape, Shape::kKeys>(v, row_of(a.v, tile.batch, 0, h), a.v.row_stride, a.v.width,
                                   whole, position);
    const bool masked = slot.part->masked != 0;
    constexpr int kWarpRows = Shape::kRows / (Shape::kThreads / 32);
    const int first_row = static_cast<int>(threadIdx.x / 32) * kWarpRows;
    if (masked)
      make_mask<kWarpRows, Shape::kKeys>(words + first_row * (Shape::kKeys / 32), *slot.part,
                                         slot.lane, slot.first, position, tile, first_row);
    if (threadIdx.x < 32) walk.write(n + 1);
    __syncthreads();
    if (slot.range != range) {
      range = slot.range;
      rows.begin_range(slot, tile, y);
    }
    rows.scores(shared, k, y, x, a.scale);
    rows.mask(masked ? words : nullptr, slot.first, y, x);
    rows.soften(p, y, x);
    rows.absorb(p, v, y, x);
    __syncthreads();
  }
  rows.store(a, tile, y, x);
}

}  // namespace

template <int kWidth>
void forward_float(device::Stream stream, ForwardArguments<float> a) {
  using Shape = FloatShape<kWidth>;
  launch_forward(stream, forward_fma<Shape>, a, Shape::kRows, Shape::kThreads, Shape::kBytes);
}

template void forward_float<32>(device::Stream, ForwardArguments<float>);
template void forward_float<64>(device::Stream, ForwardArguments<float>);
template void forward_float<128>(device::Stream, ForwardArguments<float>);
template void forward_float<256>(device::Stream, ForwardArguments<float>);

}  // namespace longstride::ops::cuda
