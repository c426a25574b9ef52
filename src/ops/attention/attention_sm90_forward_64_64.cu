#include "ops/attention/attention_sm90_forward_launch.cuh"

namespace longstride::ops::cuda::sm90 {

template void forward<bf16, 64, 64, true>(device::Stream, const Attention<bf16>&, const Line&);
template void forward<bf16, 64, 64, false>(device::Stream, const Attention<bf16>&, const Line&);
template void forward<fp16, 64, 64, true>(device::Stream, const Attention<fp16>&, const Line&);
template void forward<fp16, 64, 64, false>(device::Stream, const Attention<fp16>&, const Line&);

}  // namespace longstride::ops::cuda::sm90
