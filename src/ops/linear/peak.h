// What this machine can do at best, measured: the yardstick of "share of peak".
#pragma once

namespace longstride::ops {

// Floating point operations a second of linear_forward, all threads: the best of a few runs of
// large products that suit it. Takes some 0.2 s on two cores.
double measure_peak_flops();       // float32
double measure_peak_bf16_flops();  // bf16 in and out; what is reached where bf16 is widened to
                                   // float for want of instructions, too

}  // namespace longstride::ops
