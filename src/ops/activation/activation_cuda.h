// The activation on the GPU; formulas in activation.h. Matrices may be parts of wider rows.
#pragma once

#include <type_traits>

#include "device/cuda.h"
#include "tensor/bf16.h"
#include "tensor/fp16.h"
#include "tensor/tensor.h"

namespace longstride::ops::cuda {

// y = act(x). x, y [R, C]; y may be x. A: float, bf16, fp16.
template <class A>
void activation(device::Stream stream, std::type_identity_t<Matrix<const A>> x, Matrix<A> y);

// dpre = dy act'(pre), and y = act(pre) unless it is empty, in one pass. All [R, C]; dpre and y may
// each be pre or dy. y's bits are those of activation().
template <class A>
void activation_backward(device::Stream stream, std::type_identity_t<Matrix<const A>> pre,
                         std::type_identity_t<Matrix<const A>> dy, Matrix<A> dpre,
                         std::type_identity_t<Matrix<A>> y);

}  // namespace longstride::ops::cuda
