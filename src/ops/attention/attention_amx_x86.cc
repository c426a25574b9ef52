// The kernels on the tile unit of the processor. Everything that is compiled with its instruction
// sets is between push and pop, and is a template over AmxUnit or a member of it: nothing that code
// for other processors could be linked to.
#include <hwy/base.h>

#include "ops/attention/attention_amx_lane.h"

#if HWY_ARCH_X86_64 && defined(__linux__)

#include <immintrin.h>

// g++ 12 sees its own intrinsics read what they call undefined (its bug 105593).
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"

HWY_PUSH_ATTRIBUTES("avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx2,fma,bmi,bmi2")
#include "ops/attention/attention_amx_x86.h"
// After it:
#include "ops/attention/attention_amx_backward.h"
#include "ops/attention/attention_amx_forward.h"

namespace longstride::ops::cpu {

namespace {

void forward(const ForwardRows& rows, const LaneBlock& lane, const ForwardSpace& space) {
  ForwardTiles<AmxUnit>(rows, lane, space).run();
}

void backward(const BackwardRows& rows, const LaneBlock& lane, const BackwardSpace& space) {
  BackwardTiles<AmxUnit>(rows, lane, space).run();
}

}  // namespace

}  // namespace longstride::ops::cpu
HWY_POP_ATTRIBUTES

namespace longstride::ops::cpu {

const TileKernels kAmxKernels = {forward, backward};

}  // namespace longstride::ops::cpu

#else

namespace longstride::ops::cpu {

const TileKernels kAmxKernels = {nullptr, nullptr};

}  // namespace longstride::ops::cpu

#endif
