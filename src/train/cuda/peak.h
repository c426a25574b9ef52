// What this card's matrix products reach at best: the yardstick of "share of peak".
#pragma once

namespace longstride {

// Floating point operations a second of ops::cuda::linear in A: float, bf16, fp16. Square products
// of random numbers (zeros would let the card run faster than work does), 8192 wide where memory
// allows.
template <class A>
double measure_device_peak();

}  // namespace longstride
