#include "ops/attention/attention_backward_launch.cuh"

namespace longstride::ops::cuda {

template void launch_backward<bf16, Backward64>(device::Stream, const BackwardArguments<bf16>&,
                                                std::int64_t);
template void launch_backward<fp16, Backward64>(device::Stream, const BackwardArguments<fp16>&,
                                                std::int64_t);

}  // namespace longstride::ops::cuda
