#include "ops/attention/attention_forward_shapes.cuh"

namespace longstride::ops::cuda {

template void forward<bf16, 256, 256>(device::Stream, const ForwardArguments<bf16>&, bool);
template void forward<fp16, 256, 256>(device::Stream, const ForwardArguments<fp16>&, bool);

}  // namespace longstride::ops::cuda
