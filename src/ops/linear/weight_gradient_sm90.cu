// Weight gradients on Hopper: dW[in, out] (+)= x^T dy and db (+)= sum_r dy[r], summed over R rows.
//
// dW has few tiles and R is long: each (tile [256, 256], part of the rows) is one piece of work of
// a cluster of two blocks; pieces of the same rows come next to each other, so that x and dy are
// read from memory once. A block makes 128 rows of the tile with two groups of four warps (64
// each); it loads its own columns of x, and half of the columns of dy for both blocks. Both
// operands lie across the sum, which the tensor cores read as they are. Sums of dy: each block adds
// up the tiles of dy whose turn it is among those that load the same, from shared memory, while the
// products run. Parts go to scratch in the order of registers and are added by a second kernel, in
// order.
//
// Work: 2 R in out FLOPs; least bytes: x, dy once, dW twice. With in, out >= 512 the tensor cores
// bind (734 TFLOP/s measured), below the memory. L2 gives a multiprocessor 32 KB for
// 2 x 128 x 256 x 64 FLOPs. Parts add 8 bytes an element of dW and part, mostly in L2.
#include <algorithm>

#include "device/cluster_sm90.cuh"
#include "device/early_launch_sm90.cuh"
#include "device/number.cuh"
#include "device/wgmma_sm90.cuh"
#include "ops/linear/product256_sm90.cuh"
#include "ops/linear/weight_gradient_sm90.h"
#include "ops/linear/words_sm90.cuh"

namespace longstride::ops::cuda::weight_gradient {

namespace {

constexpr int kDeep = 64, kBox = 64 * 64 * 2;       // rows of a step; bytes of a box
constexpr int kStages = 4, kStageBytes = 6 * kBox;  // two boxes of x, four of dy
constexpr int kBarriersAt = kStages * kStageBytes;
constexpr int kShared = kBarriersAt + 2 * kStages * 8 + 1024;  // the last: to align
constexpr int kThreads = 384, kGroup = 128;
constexpr int kGroupFloats = 64 * kTile;  // of dW, made by a group

// A piece of work: tile of dW and steps of rows.
struct Piece {
  int tile_in, tile_out, begin, end;
  __device__ Piece(const Split& split, int index) {
    const int tile = index % split.tiles(), part = index / split.tiles();
    tile_in = tile / split.tiles_out();
    tile_out = tile % split.tiles_out();
    begin = part * (split.chunk / kDeep);
    end = min(begin + split.chunk / kDeep, static_cast<int>((split.rows + kDeep - 1) / kDeep));
  }
};

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)

using device::sm90::Address;

struct Place {
  Address base;
  unsigned rank;
  __device__ Address x(int stage) const { return base + stage * kStageBytes; }
  __device__ Address dy(int stage) const { return x(stage) + 2 * kBox; }
  __device__ Address full(int stage) const { return base + kBarriersAt + stage * 8; }
  __device__ Address empty(int stage) const { return full(kStages + stage); }
};

struct Turn {
  int stage = 0;
  unsigned parity = 0;
  __device__ void forward() {
    if (++stage == kStages) stage = 0, parity ^= 1u;
  }
};

__device__ void load(const Place& at, const CUtensorMap& x_map, const CUtensorMap& dy_map,
                     const Split& split) {
  using namespace device::sm90;
  Turn turn;
  const auto rank = static_cast<int>(at.rank);
  for (int index = blockIdx.x / 2; index < split.tiles() * split.parts; index += gridDim.x / 2) {
    const Piece piece(split, index);
    for (int step = piece.begin; step < piece.end; ++step, turn.forward()) {
      const Address full = at.full(turn.stage);
      wait_for(at.empty(turn.stage), turn.parity ^ 1u);
      arrive_expecting(full, kStageBytes);
      for (int box = 0; box < 2; ++box)
        load_box(at.x(turn.stage) + box * kBox, x_map, full,
                 piece.tile_in * kTile + rank * 128 + box * 64, step * kDeep);
      for (int box = rank * 2; box < rank * 2 + 2; ++box)
        load_box_to(3, at.dy(turn.stage) + box * kBox, dy_map, full,
                    piece.tile_out * kTile + box * 64, step * kDeep);
    }
  }
}

// Adds this group's 32 rows of a tile of dy, two columns a thread.
template <class A>
__device__ void add_rows(float2& sum, Address dy, int group, int thread) {
  const Address from = dy + thread / 32 * kBox + group * 32 * 128 + thread % 4 * 4;
  const int piece = thread % 32 / 4;
#pragma unroll 8
  for (int r = 0; r < 32; ++r) {
    std::uint32_t word;
    asm volatile("ld.shared.u32 %0, [%1];"
                 : "=r"(word)
                 : "r"(from + r * 128 + (piece ^ (r & 7)) * 16)
                 : "memory");
    const float2 values = unpack<A>(word);
    sum.x += values.x, sum.y += values.y;
  }
}

template <class A>
__device__ void compute(const Place& at, const Split& split, float* scratch, bool with_sums,
                        int group) {
  using namespace device::sm90;
  const int thread = threadIdx.x % kGroup, lane = thread % 32;
  float* const sums = scratch + split.parts * split.part_floats();
  const auto release = [&](int stage) {
    if (lane < 2) arrive_in(lane, at.empty(stage));
  };
  Turn turn;
  for (int index = blockIdx.x / 2; index < split.tiles() * split.parts; index += gridDim.x / 2) {
    const Piece piece(split, index);
    const int turns = 2 * split.tiles_in();  // blocks that load the same of dy
    int turn_in = 2 * piece.tile_in + static_cast<int>(at.rank);
    float d[128];
    float2 sum = {0, 0};
    int before = 0;
    for (int step = piece.begin; step < piece.end; ++step) {
      wait_for(at.full(turn.stage), turn.parity);
      const std::uint64_t x = tile_at(at.x(turn.stage) + group * kBox, kBox);
      const std::uint64_t dy = tile_at(at.dy(turn.stage), kBox);
      fence();
#pragma unroll
      for (int k = 0; k < 4; ++k)
        product_across<A>(d, step_across(x, k), step_across(dy, k), step > piece.begin || k > 0);
      commit();
      if (with_sums && turn_in == 0) {
        add_rows<A>(sum, at.dy(turn.stage), group, thread);
        turn_in = turns;
      }
      --turn_in;
      if (step > piece.begin) {
        wait<1>();
        release(before);
      }
      before = turn.stage;
      turn.forward();
    }
    wait<0>();
    pin(d);
    release(before);
    const std::int64_t half = std::int64_t{index} * 4 + at.rank * 2 + group;
    float4* const to = reinterpret_cast<float4*>(scratch + half * kGroupFloats) + thread;
#pragma unroll
    for (int i = 0; i < 32; ++i)
      to[i * kGroup] = float4{d[4 * i], d[4 * i + 1], d[4 * i + 2], d[4 * i + 3]};
    if (with_sums) reinterpret_cast<float2*>(sums + half * kTile)[thread] = sum;
  }
}

#endif

template <class A>
__global__ void __launch_bounds__(kThreads, 1)
    parts_kernel(const __grid_constant__ CUtensorMap x_map,
                 const __grid_constant__ CUtensorMap dy_map, const Split split, float* scratch,
                 bool with_sums) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  using namespace device::sm90;
  extern __shared__ unsigned char shared[];
  const Place at = {(address_of(shared) + 1023u) & ~1023u, cluster_rank()};
  if (threadIdx.x == 0) {
    for (int stage = 0; stage < kStages; ++stage) {
      barrier_init(at.full(stage), 1);
      barrier_init(at.empty(stage), 2 * 8);  // the warps of both groups, of both blocks
    }
    barriers_ready();
  }
  cluster_sync();
  after_previous();
  allow_next();
  if (threadIdx.x < kGroup) {
    give_registers<40>();
    if (threadIdx.x == 0) load(at, x_map, dy_map, split);
  } else {
    take_registers<232>();
    compute<A>(at, split, scratch, with_sums,
               __shfl_sync(0xffffffffu, static_cast<int>(threadIdx.x) / kGroup, 0) - 1);
  }
  __syncwarp();
  cluster_leave();  // the other block arrives at barriers of this one
#endif
}

// out = total, or out + total.
__device__ void put(float* out, float2 total, bool add) {
  float2* const to = reinterpret_cast<float2*>(out);
  if (add) {
    const float2 old = *to;
    total.x += old.x, total.y += old.y;
  }
  *to = total;
}

// Threads of a block that adds: across x below, `below` of them for a place.
constexpr int kAddThreads = 256, kSumBelow = 8;
constexpr int kPlaces = kTile * kTile / 4;  // of a tile: 4 elements each
template <int kBelow>
constexpr int kAddBlocks = kPlaces / (kAddThreads / kBelow);   // of a tile
constexpr int kSumBlocks = kTile / (kAddThreads / kSumBelow);  // of the columns of a tile

// The sum over the threads of a place, in the first of them.
template <int kBelow>
__device__ float4 add_below(float4 mine) {
  if constexpr (kBelow > 1) {
    constexpr int kAcross = kAddThreads / kBelow;
    __shared__ float4 all[kAddThreads];
    all[threadIdx.x] = mine;
    __syncthreads();
    if (threadIdx.x >= kAcross) return mine;
    for (int y = 1; y < kBelow; ++y) {
      const float4 v = all[y * kAcross + threadIdx.x];
      mine.x += v.x, mine.y += v.y, mine.z += v.z, mine.w += v.w;
    }
  }
  return mine;
}

// Places of dW are 2 x 2 elements as they lay in registers.
template <int kBelow>
__device__ void add_tile(const Split& split, const float* scratch, float* dweight, bool add,
                         int block) {
  constexpr int kAcross = kAddThreads / kBelow;
  const int tile = block / kAddBlocks<kBelow>;
  const int inside = block % kAddBlocks<kBelow> * kAcross + threadIdx.x % kAcross;
  const float* const from = scratch + std::int64_t{tile} * kTile * kTile + inside * 4;
  float4 total = {0, 0, 0, 0};
#pragma unroll 4
  for (int part = threadIdx.x / kAcross; part < split.parts; part += kBelow) {
    const float4 v = *reinterpret_cast<const float4*>(from + part * split.part_floats());
    total.x += v.x, total.y += v.y, total.z += v.z, total.w += v.w;
  }
  total = add_below<kBelow>(total);
  const int thread = inside % kGroup, piece = inside / kGroup % 32, group = inside / kGroup / 32;
  const int i = tile / split.tiles_out() * kTile + group * 64 + thread / 32 * 16 + thread % 32 / 4;
  const int o = tile % split.tiles_out() * kTile + piece * 8 + thread % 4 * 2;
  if (threadIdx.x >= kAcross || o >= split.out) return;
  float* const to = dweight + std::int64_t{i} * split.out + o;
  if (i < split.in) put(to, {total.x, total.y}, add);
  if (i + 8 < split.in) put(to + 8 * std::int64_t{split.out}, {total.z, total.w}, add);
}

__device__ void add_sums(const Split& split, const float* scratch, float* dbias, bool add,
                         int block) {
  constexpr int kAcross = kAddThreads / kSumBelow;
  const int tile_out = block / kSumBlocks;
  const int column = block % kSumBlocks * kAcross + threadIdx.x % kAcross;
  const float* const sums = scratch + split.parts * split.part_floats();
  float4 total = {0, 0, 0, 0};
#pragma unroll 4
  for (int part = threadIdx.x / kAcross; part < split.parts * split.tiles_in(); part += kSumBelow) {
    const std::int64_t index = std::int64_t{part} * split.tiles_out() + tile_out;
    const float* const four = sums + index * 4 * kTile + column;
    total.x += four[0], total.y += four[kTile];
    total.z += four[2 * kTile], total.w += four[3 * kTile];
  }
  total = add_below<kSumBelow>(total);
  const int n = tile_out * kTile + column;
  if (threadIdx.x >= kAcross || n >= split.out) return;
  const float sum = (total.x + total.y) + (total.z + total.w);
  dbias[n] = add ? dbias[n] + sum : sum;
}

// Blocks of db first, `sum_blocks` of them, which take longest, then those of dW. They may be on
// the card before the parts are done.
template <int kBelow>
__global__ void __launch_bounds__(kAddThreads, 6)
    add_kernel(const Split split, const float* scratch, float* dweight, float* dbias, bool add,
               int sum_blocks) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  device::sm90::after_previous();
  device::sm90::allow_next();
  const auto block = static_cast<int>(blockIdx.x);
  if (block < sum_blocks)
    add_sums(split, scratch, dbias, add, block);
  else
    add_tile<kBelow>(split, scratch, dweight, add, block - sum_blocks);
#endif
}

template <int kBelow>
void launch_add(device::Stream stream, const Split& split, const float* scratch, float* dweight,
                float* dbias, bool add) {
  const int sum_blocks = dbias == nullptr ? 0 : split.tiles_out() * kSumBlocks;
  cudaLaunchAttribute early = device::early_launch();
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(static_cast<unsigned>(split.tiles() * kAddBlocks<kBelow> + sum_blocks));
  config.blockDim = dim3(kAddThreads);
  config.stream = stream;
  config.attrs = &early;
  config.numAttrs = 1;
  device::check(cudaLaunchKernelEx(&config, add_kernel<kBelow>, split, scratch, dweight, dbias, add,
                                   sum_blocks),
                "linear_weight_gradient");
}

}  // namespace

template <class A>
void launch(device::Stream stream, const CUtensorMap& x, const CUtensorMap& dy, const Split& split,
            float* scratch, float* dweight, float* dbias, bool add) {
  const auto entry = parts_kernel<A>;
  static const bool prepared = [&] {
    device::check(cudaFuncSetAttribute(entry, cudaFuncAttributeMaxDynamicSharedMemorySize, kShared),
                  "linear_weight_gradient: shared memory");
    return true;
  }();
  static_cast<void>(prepared);
  const int clusters = std::min(device::multiprocessors() / 2, split.tiles() * split.parts);
  cudaLaunchAttribute attributes[2] = {{}, device::early_launch()};
  attributes[0].id = cudaLaunchAttributeClusterDimension;
  attributes[0].val.clusterDim = {2, 1, 1};
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(static_cast<unsigned>(2 * clusters));
  config.blockDim = dim3(kThreads);
  config.dynamicSmemBytes = kShared;
  config.stream = stream;
  config.attrs = attributes;
  config.numAttrs = 2;
  device::check(cudaLaunchKernelEx(&config, entry, x, dy, split, scratch, dbias != nullptr),
                "linear_weight_gradient");
  // The fewer places, the more threads share one, so that about all that run at once are at work:
  // what comes from L2 takes long.
  if (split.tiles() <= 2)
    launch_add<8>(stream, split, scratch, dweight, dbias, add);
  else if (split.tiles() <= 4)
    launch_add<4>(stream, split, scratch, dweight, dbias, add);
  else
    launch_add<1>(stream, split, scratch, dweight, dbias, add);
  device::launched(stream, "linear_weight_gradient ", split.rows, "x", split.in, "x", split.out);
}

template void launch<bf16>(device::Stream, const CUtensorMap&, const CUtensorMap&, const Split&,
                           float*, float*, float*, bool);
template void launch<fp16>(device::Stream, const CUtensorMap&, const CUtensorMap&, const Split&,
                           float*, float*, float*, bool);

}  // namespace longstride::ops::cuda::weight_gradient
