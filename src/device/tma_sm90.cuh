// Barriers in shared memory and the copies of the copy engine (TMA) that arrive at them.
#pragma once

#include <cuda.h>

#include <cstdint>

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)

namespace longstride::device::sm90 {

using Address = std::uint32_t;  // in shared memory

__device__ inline Address address_of(const void* shared) {
  return static_cast<Address>(__cvta_generic_to_shared(shared));
}

// A barrier of 8 bytes completes phase n when `arrivals` threads arrived and all bytes that were
// announced to it came.
__device__ inline void barrier_init(Address barrier, int arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(barrier), "r"(arrivals) : "memory");
}
__device__ inline void barriers_ready() {  // then __syncthreads()
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}
__device__ inline void arrive(Address barrier) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(barrier) : "memory");
}
__device__ inline void arrive_expecting(Address barrier, int bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier), "r"(bytes)
               : "memory");
}
// Ordinary writes to shared memory before this come before copies of the copy engine behind it (and
// a barrier of the threads).
__device__ inline void async_after_writes() {
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}
// Until the phase of this parity is complete; of a fresh barrier, parity 1 is.
__device__ inline void wait_for(Address barrier, unsigned parity) {
  unsigned done = 0;
  while (done == 0)
    asm volatile(
        "{\n.reg .pred p;\n"
        "mbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2;\n"
        "selp.u32 %0, 1, 0, p;\n}\n"
        : "=r"(done)
        : "r"(barrier), "r"(parity)
        : "memory");
}

// A box of a tensor map (device/tensor_map.h) to shared memory, a multiple of 1,024 bytes; at: its
// first index along each extent.
__device__ inline void load_box(Address to, const CUtensorMap& map, Address barrier, int at0,
                                int at1) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes "
      "[%0], [%1, {%2, %3}], [%4];" ::"r"(to),
      "l"(&map), "r"(at0), "r"(at1), "r"(barrier)
      : "memory");
}
__device__ inline void load_box(Address to, const CUtensorMap& map, Address barrier, int at0,
                                int at1, int at2, int at3, int at4) {
  asm volatile(
      "cp.async.bulk.tensor.5d.shared::cluster.global.mbarrier::complete_tx::bytes "
      "[%0], [%1, {%2, %3, %4, %5, %6}], [%7];" ::"r"(to),
      "l"(&map), "r"(at0), "r"(at1), "r"(at2), "r"(at3), "r"(at4), "r"(barrier)
      : "memory");
}
// `bytes` (a multiple of 16, as both addresses are) in a row.
__device__ inline void load_bytes(Address to, const void* from, int bytes, Address barrier) {
  asm volatile(
      "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::
          "r"(to),
      "l"(from), "r"(bytes), "r"(barrier)
      : "memory");
}
__device__ inline void prefetch(const CUtensorMap& map) {
  asm volatile("prefetch.tensormap [%0];" ::"l"(&map) : "memory");
}

// Registers of a thread, by whole warpgroups; 24 to 240 in steps of 8.
template <int kRegisters>
__device__ void take_registers() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(kRegisters));
}
template <int kRegisters>
__device__ void give_registers() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(kRegisters));
}

}  // namespace longstride::device::sm90

#endif
