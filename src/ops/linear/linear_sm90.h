// The maps by our own products on Hopper. Each returns false, with nothing done, where the shape is
// none of theirs: the operands do not suit the copy engine (multiples of 8 elements and 16 bytes),
// the sum is too long to keep the weights in shared memory, or cuBLASLt is as fast.
#pragma once

#include "ops/linear/linear_cuda.h"

namespace longstride::ops::cuda::sm90 {

template <class A, class Y>
bool linear(device::Stream stream, const Linear<A, Y>& op);
template <class A>
bool linear_activation(device::Stream stream, const LinearActivation<A>& op);
template <class A>
bool linear_input_gradient(device::Stream stream, const LinearInputGradient<A>& op);
template <class A>
bool linear_activation_gradient(device::Stream stream, const LinearActivationGradient<A>& op);
template <class A>
bool linear_weight_gradient(LinearContext& context, device::Stream stream,
                            const LinearWeightGradient<A>& op);

}  // namespace longstride::ops::cuda::sm90
