// The launch of the Hopper forward kernel for widths up to kQk and kV.
#pragma once

#include "ops/attention/attention_sm90.h"

namespace longstride::ops::cuda::sm90 {

template <class A, int kQk, int kV>
void forward(device::Stream stream, const Attention<A>& op, const Line& line);

}  // namespace longstride::ops::cuda::sm90
