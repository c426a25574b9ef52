// Kernels that come onto the card while the one before in their stream still ends (Hopper): what a
// kernel sets up for itself then costs no time of its own.
//
// Launched with early_launch(), a kernel calls after_previous() in every thread before it reads or
// writes global memory: all kernels before are complete then, if each of them was launched
// ordinarily or does the same. allow_next(), called by all blocks, lets the next kernel come as
// soon as multiprocessors have room for it.
#pragma once

#include <cuda_runtime_api.h>

namespace longstride::device {

inline cudaLaunchAttribute early_launch() {
  cudaLaunchAttribute attribute = {};
  attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attribute.val.programmaticStreamSerializationAllowed = 1;
  return attribute;
}

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)

namespace sm90 {

__device__ inline void after_previous() { asm volatile("griddepcontrol.wait;" ::: "memory"); }
__device__ inline void allow_next() { asm volatile("griddepcontrol.launch_dependents;"); }

}  // namespace sm90

#endif

}  // namespace longstride::device
