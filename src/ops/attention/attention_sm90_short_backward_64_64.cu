#include "ops/attention/attention_sm90_short_backward_launch.cuh"

namespace longstride::ops::cuda::sm90 {

template void short_backward<bf16, 64, 64, 1>(device::Stream, const AttentionBackward<bf16>&,
                                              const Line&);
template void short_backward<fp16, 64, 64, 1>(device::Stream, const AttentionBackward<fp16>&,
                                              const Line&);

}  // namespace longstride::ops::cuda::sm90
