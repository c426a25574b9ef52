// Attention backward in float, on plain cores: for exactness. Formulas in attention.h, the walk in
// attention_backward_plan.h. A block owns a tile of keys; its threads own small rectangles of each
// product and read both factors from shared memory, four columns at a time.
//
// work    2 (3 d_qk + 2 d_v) flops a pair      bound   reads of shared memory
#include "ops/attention/attention_backward_float.cuh"

#include <cmath>

namespace longstride::ops::cuda {

namespace {

constexpr int kThreads = 256;

template <int kWidth, int kTile>
class FloatBackward {
 public:
  static constexpr int kPitch = kWidth + 4, kPairPitch = kTile + 4;
  // A thread's share of [kTile][kWidth]: kRows rows of four columns.
  static constexpr int kColumns = kWidth / 4, kRows = kTile * kColumns / kThreads;
  // A thread's share of [kTile][kTile]: kEdge x kEdge pairs, 16 apart.
  static constexpr int kEdge = kTile / 16;

  struct Memory {
    alignas(16) float k[kTile][kPitch], v[kTile][kPitch], q[kTile][kPitch], dout[kTile][kPitch];
    alignas(16) float p[kTile][kPairPitch], ds[kTile][kPairPitch];  // [query][key]
    alignas(16) float ds_of_keys[kTile][kPairPitch];                // [key][query]
    QueryRows<kTile> rows;
    std::int32_t key_position[kTile];
  };

  __device__ __forceinline__ FloatBackward(const BackwardArguments<float>& arguments,
                                           Memory& memory)
      : a_(arguments),
        at_(memory),
        key_(key_tile(arguments.walk, blockIdx.x)),
        tiles_(arguments.walk, key_) {}

  __device__ __forceinline__ void run() {
    if (key_.count < 1) return;
    bool more = tiles_.next(a_.walk, key_, WarpSearch{});
    if (!more && a_.stores == 0 && a_.walk.geometry.splits == 1) return;
    for (int n = thread(); n < kTile; n += kThreads)
      at_.key_position[n] = n < key_.count ? position_of_key(a_.walk, key_, n) : -1;
    __syncthreads();
    load(a_.k, at_.k, [&](int r) { return at_.key_position[r]; });
    load(a_.v, at_.v, [&](int r) { return at_.key_position[r]; });
    for (; more; more = tiles_.next(a_.walk, key_, WarpSearch{})) {
      load_queries();
      __syncthreads();
      pairs();
      const std::int32_t before = at_.rows.before, behind = at_.rows.behind;
      if (before > 0 && thread() == 0) wait_for(a_.done + tiles_.shared, before);
      __syncthreads();
      multiply(dv_, at_.p, at_.dout);
      multiply(dk_, at_.ds, at_.q);
      queries(before, behind);
      __syncthreads();
      if (behind > 0 && thread() == 0) publish(a_.done + tiles_.shared, before + 1);
    }
    if (a_.walk.geometry.splits > 1)
      finish_split();
    else
      finish();
  }

 private:
  __device__ __forceinline__ int thread() const { return static_cast<int>(threadIdx.x); }
  __device__ __forceinline__ int first_row() const { return thread() / kColumns * kRows; }
  __device__ __forceinline__ int column() const { return thread() % kColumns * 4; }
  template <class T>
  __device__ __forceinline__ T* base(const Heads<T>& x) const {
    return x.data + key_.batch * x.length * x.row_stride + key_.head * x.width;
  }
  __device__ __forceinline__ std::int32_t query_at(int r) const {
    return r < tiles_.count ? query(*key_.part, tiles_.lane, tiles_.step + r) : -1;
  }

  template <class PositionOf>
  __device__ __forceinline__ void load(const Heads<const float>& x, float (&to)[kTile][kPitch],
                                       const PositionOf& position_of) {
    const float* const from = base(x);
    for (int n = thread(); n < kTile * kColumns; n += kThreads) {
      const int r = n / kColumns, c = n % kColumns * 4;
      const std::int64_t i = position_of(r);
      float4 values{0, 0, 0, 0};
      if (i >= 0 && c < x.width) {
        const float* const at = from + i * x.row_stride + c;
        if (a_.whole_pieces != 0) {
          values = *reinterpret_cast<const float4*>(at);
        } else {
          values.x = at[0];
          if (c + 1 < x.width) values.y = at[1];
          if (c + 2 < x.width) values.z = at[2];
          if (c + 3 < x.width) values.w = at[3];
        }
      }
      *reinterpret_cast<float4*>(&to[r][c]) = values;
    }
  }

  __device__ __forceinline__ void load_queries() {
    load(a_.q, at_.q, [&](int r) { return query_at(r); });
    load(a_.dout, at_.dout, [&](int r) { return query_at(r); });
    if (thread() >= 32) return;
    const int r = thread();
    describe_row<kTile>(a_.walk, key_, tiles_, r, at_.rows);
    if (r >= kTile) return;
    const std::int64_t i = query_at(r);
    const float2* const rows =
        a_.rows + (static_cast<std::int64_t>(key_.batch) * a_.q.heads + key_.head) * a_.walk.length;
    at_.rows.row[r] = i < 0 ? float2{0, 0} : rows[i];
  }

  // p, ds and ds_of_keys.
  __device__ __forceinline__ void pairs() {
    const int q0 = thread() / 16, k0 = thread() % 16;
    float s[kEdge][kEdge] = {}, dp[kEdge][kEdge] = {};
    const auto products = [&](const float(&x)[kTile][kPitch], const float(&y)[kTile][kPitch],
                              float(&sum)[kEdge][kEdge]) {
#pragma unroll 4
      for (int c = 0; c < kWidth; c += 4) {
        float4 a[kEdge], b[kEdge];
#pragma unroll
        for (int e = 0; e < kEdge; ++e) {
          a[e] = *reinterpret_cast<const float4*>(&x[q0 + 16 * e][c]);
          b[e] = *reinterpret_cast<const float4*>(&y[k0 + 16 * e][c]);
        }
#pragma unroll
        for (int e = 0; e < kEdge; ++e)
#pragma unroll
          for (int f = 0; f < kEdge; ++f)
            sum[e][f] += a[e].x * b[f].x + a[e].y * b[f].y + a[e].z * b[f].z + a[e].w * b[f].w;
      }
    };
    products(at_.q, at_.k, s);
    products(at_.dout, at_.v, dp);
#pragma unroll
    for (int e = 0; e < kEdge; ++e)
#pragma unroll
      for (int f = 0; f < kEdge; ++f) {
        const int q = q0 + 16 * e, k = k0 + 16 * f;
        const int2 seen = at_.rows.seen[q];
        const float2 row = at_.rows.row[q];
        bool kept = k >= seen.x && k < seen.y;
        if (kept && key_.part->masked != 0) {
          const std::int32_t i = query_at(q), j = at_.key_position[k];
          kept = j <= i && keeps(*key_.part, i, j);
        }
        const float p = kept ? expf(a_.scale * s[e][f] - row.x) : 0.0f;
        const float ds = kept ? p * (dp[e][f] - row.y) : 0.0f;
        at_.p[q][k] = p;
        at_.ds[q][k] = ds;
        at_.ds_of_keys[k][q] = ds;
      }
  }

  // sum[row][column] += sum over n of weight[n][row] x[n][column]
  __device__ __forceinline__ void multiply(float (&sum)[kRows][4],
                                           const float (&weight)[kTile][kPairPitch],
                                           const float (&x)[kTile][kPitch]) {
#pragma unroll 4
    for (int n = 0; n < kTile; ++n) {
      const float4 values = *reinterpret_cast<const float4*>(&x[n][column()]);
#pragma unroll
      for (int r = 0; r < kRows; ++r) {
        const float w = weight[n][first_row() + r];
        sum[r][0] += w * values.x, sum[r][1] += w * values.y;
        sum[r][2] += w * values.z, sum[r][3] += w * values.w;
      }
    }
  }

  // dQ of the current tile.
  __device__ __forceinline__ void queries(std::int32_t before, std::int32_t behind) {
    float sum[kRows][4] = {};
    multiply(sum, at_.ds_of_keys, at_.k);
    float4* const partial =
        reinterpret_cast<float4*>(a_.queries +
                                  static_cast<std::int64_t>(tiles_.shared) * kTile * kWidth) +
        thread();
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      if (before > 0) {
        const float4 old = __ldcg(partial + r * kThreads);
        sum[r][0] += old.x, sum[r][1] += old.y, sum[r][2] += old.z, sum[r][3] += old.w;
      }
      if (behind > 0)
        __stcg(partial + r * kThreads, float4{sum[r][0], sum[r][1], sum[r][2], sum[r][3]});
      else
        write(a_.dq, query_at(first_row() + r), sum[r], a_.scale);
    }
  }

  __device__ __forceinline__ void write(const Heads<float>& x, std::int64_t i,
                                        const float (&values)[4], float scale) {
    if (i < 0) return;
    float* const to = base(x) + i * x.row_stride;
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      const int c = column() + e;
      if (c < x.width) to[c] = a_.stores != 0 ? scale * values[e] : to[c] + scale * values[e];
    }
  }

  __device__ __forceinline__ void finish() {
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      const std::int32_t j = at_.key_position[first_row() + r];
      write(a_.dk, j, dk_[r], a_.scale);
      write(a_.dv, j, dv_[r], 1.0f);
    }
  }

  __device__ __forceinline__ void finish_split() {
    float* const to = a_.keys + static_cast<std::int64_t>(blockIdx.x) * kTile * 2 * kWidth;
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      float* const row = to + (first_row() + r) * kWidth + column();
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        row[e] = a_.scale * dk_[r][e];
        row[kTile * kWidth + e] = dv_[r][e];
      }
    }
  }

  const BackwardArguments<float>& a_;
  Memory& at_;
  const KeyTile key_;
  QueryTiles tiles_;
  float dk_[kRows][4] = {}, dv_[kRows][4] = {};
};

template <int kWidth, int kTile>
__global__ void __launch_bounds__(kThreads)
    attention_backward_float(const __grid_constant__ BackwardArguments<float> arguments) {
  extern __shared__ __align__(16) char shared[];
  using Block = FloatBackward<kWidth, kTile>;
  Block(arguments, *reinterpret_cast<typename Block::Memory*>(shared)).run();
}

}  // namespace

template <int kWidth, int kTile>
void launch_backward_float(device::Stream stream, const BackwardArguments<float>& arguments,
                           std::int64_t blocks, bool /*whole*/) {
  constexpr int kBytes = static_cast<int>(sizeof(typename FloatBackward<kWidth, kTile>::Memory));
  static_assert(kBytes <= 99 * 1024);
  const auto kernel = attention_backward_float<kWidth, kTile>;
  static const cudaError_t allowed =
      cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kBytes);
  device::check(allowed, "attention_backward: shared memory");
  kernel<<<static_cast<unsigned>(blocks), kThreads, kBytes, stream>>>(arguments);
  device::launched(stream, "attention_backward float B ", arguments.q.batch, " N ",
                   arguments.walk.length, " heads ", arguments.walk.heads, " of ",
                   arguments.q.heads, " widths ", arguments.q.width, ", ", arguments.v.width);
}

template void launch_backward_float<64, 32>(device::Stream, const BackwardArguments<float>&,
                                            std::int64_t, bool);
template void launch_backward_float<128, 32>(device::Stream, const BackwardArguments<float>&,
                                             std::int64_t, bool);
template void launch_backward_float<256, 16>(device::Stream, const BackwardArguments<float>&,
                                             std::int64_t, bool);

}  // namespace longstride::ops::cuda
