#include "ops/attention/attention_sm90_short_forward_launch.cuh"

namespace longstride::ops::cuda::sm90 {

template void short_forward<bf16, 64, 64, 2>(device::Stream, const Attention<bf16>&, const Line&);
template void short_forward<fp16, 64, 64, 2>(device::Stream, const Attention<fp16>&, const Line&);

}  // namespace longstride::ops::cuda::sm90
