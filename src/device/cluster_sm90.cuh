// What blocks of a cluster share on Hopper, and barriers between some of the warps of a block.
#pragma once

#include "device/tma_sm90.cuh"

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)

namespace longstride::device::sm90 {

__device__ inline unsigned cluster_rank() {
  unsigned rank;
  asm("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
  return rank;
}

// All threads of all blocks of the cluster; what was written to shared memory before is seen.
__device__ inline void cluster_sync() {
  asm volatile(
      "barrier.cluster.arrive.release.aligned;\n"
      "barrier.cluster.wait.acquire.aligned;\n" ::
          : "memory");
}

// The last thing threads do whose blocks are still written to or arrived at: nothing is ordered.
__device__ inline void cluster_leave() {
  asm volatile(
      "barrier.cluster.arrive.relaxed.aligned;\n"
      "barrier.cluster.wait.aligned;\n" ::
          : "memory");
}

// At the barrier that lies at this address in the block `rank`. Orders nothing beyond the block:
// for telling that data was read (a release for the cluster would wait for all global writes).
__device__ inline void arrive_in(unsigned rank, Address barrier) {
  asm volatile(
      "{\n.reg .b32 there;\n"
      "mapa.shared::cluster.u32 there, %0, %1;\n"
      "mbarrier.arrive.shared::cluster.b64 _, [there];\n}\n" ::"r"(barrier),
      "r"(rank)
      : "memory");
}

// Two numbers to the shared memory of the block `rank`, at `to` as this block has it, and 8 bytes
// of what is expected to the barrier there: whoever waits for it sees them.
__device__ inline void store_in(unsigned rank, Address to, float2 value, Address barrier) {
  asm volatile(
      "{\n.reg .b32 there, bell;\n"
      "mapa.shared::cluster.u32 there, %0, %4;\n"
      "mapa.shared::cluster.u32 bell, %1, %4;\n"
      "st.async.shared::cluster.mbarrier::complete_tx::bytes.v2.f32 [there], {%2, %3}, [bell];\n"
      "}\n" ::"r"(to),
      "r"(barrier), "f"(value.x), "f"(value.y), "r"(rank)
      : "memory");
}

// load_box to the same addresses, and arriving at the same barrier, in each block whose bit is set.
__device__ inline void load_box_to(unsigned blocks, Address to, const CUtensorMap& map,
                                   Address barrier, int at0, int at1) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes"
      ".multicast::cluster [%0], [%1, {%2, %3}], [%4], %5;" ::"r"(to),
      "l"(&map), "r"(at0), "r"(at1), "r"(barrier), "h"(static_cast<unsigned short>(blocks))
      : "memory");
}

// Named barriers: `threads` threads meet at barrier `name` (1 to 15); those that pass do not wait.
__device__ inline void meet(int name, int threads) {
  asm volatile("bar.sync %0, %1;" ::"r"(name), "r"(threads) : "memory");
}
__device__ inline void pass(int name, int threads) {
  asm volatile("bar.arrive %0, %1;" ::"r"(name), "r"(threads) : "memory");
}

}  // namespace longstride::device::sm90

#endif
