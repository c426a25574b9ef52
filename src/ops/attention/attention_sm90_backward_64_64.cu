#include "ops/attention/attention_sm90_backward_launch.cuh"

namespace longstride::ops::cuda::sm90 {

template void query_gradient<bf16, 64, 64, true>(device::Stream, const AttentionBackward<bf16>&,
                                                 const Line&, const RowNumbers&);
template void query_gradient<bf16, 64, 64, false>(device::Stream, const AttentionBackward<bf16>&,
                                                  const Line&, const RowNumbers&);
template void key_gradient<bf16, 64, 64>(device::Stream, const AttentionBackward<bf16>&,
                                         const Line&, const RowNumbers&);
template void query_gradient<fp16, 64, 64, true>(device::Stream, const AttentionBackward<fp16>&,
                                                 const Line&, const RowNumbers&);
template void query_gradient<fp16, 64, 64, false>(device::Stream, const AttentionBackward<fp16>&,
                                                  const Line&, const RowNumbers&);
template void key_gradient<fp16, 64, 64>(device::Stream, const AttentionBackward<fp16>&,
                                         const Line&, const RowNumbers&);

}  // namespace longstride::ops::cuda::sm90
