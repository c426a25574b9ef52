// What attention_amx_unit_test.cc runs on the tile unit of the processor, compiled as
// attention_amx_x86.cc is.
#include <hwy/base.h>

#include "ops/attention/attention_amx_emulated.h"

#if HWY_ARCH_X86_64 && defined(__linux__)

#include <immintrin.h>

#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"

HWY_PUSH_ATTRIBUTES("avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx2,fma,bmi,bmi2")
#include "ops/attention/attention_amx_x86.h"
// After it:
#include "ops/attention/attention_amx_unit_test.h"

namespace longstride::ops::cpu {

void use_amx_unit(const UnitInputs& in, UnitOutputs& out) { use_unit<AmxUnit>(in, out); }

}  // namespace longstride::ops::cpu
HWY_POP_ATTRIBUTES

#else

#include "ops/attention/attention_amx_unit_test.h"

namespace longstride::ops::cpu {

void use_amx_unit(const UnitInputs&, UnitOutputs&) {}

}  // namespace longstride::ops::cpu

#endif
