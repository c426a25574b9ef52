// The launch of the Hopper forward kernel for widths up to kQk and kV. kShort: where queries see
// few keys.
#pragma once

#include "ops/attention/attention_sm90.h"

namespace longstride::ops::cuda::sm90 {

template <class A, int kQk, int kV, bool kShort>
void forward(device::Stream stream, const Attention<A>& op, const Line& line);

}  // namespace longstride::ops::cuda::sm90
