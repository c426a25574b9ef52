// What this machine can do at best, measured: the yardstick of "share of peak".
#pragma once

namespace longstride::ops {

// Floating point operations a second of linear_forward, float32, all threads: the best of a few
// runs of two shapes that suit it. Takes some 50 ms on two cores.
double measure_peak_flops();
double measure_peak_bf16_flops();

}  // namespace longstride::ops
