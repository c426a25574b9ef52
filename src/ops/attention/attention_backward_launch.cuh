// launch_backward(), for the files that instantiate it.
#pragma once

#include "ops/attention/attention_backward_shapes.cuh"

namespace longstride::ops::cuda {

template <class A, class Shape>
void launch_shape(device::Stream stream, const BackwardArguments<A>& arguments,
                  std::int64_t blocks) {
  const auto kernel = attention_backward_mma<A, Shape>;
  static const cudaError_t allowed =
      cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, Shape::kBytes);
  device::check(allowed, "attention_backward: shared memory");
  kernel<<<static_cast<unsigned>(blocks), Shape::kThreads, Shape::kBytes, stream>>>(arguments);
  device::launched(stream, "attention_backward B ", arguments.q.batch, " N ", arguments.walk.length,
                   " heads ", arguments.walk.heads, " of ", arguments.q.heads, " widths ",
                   arguments.q.width, ", ", arguments.v.width);
}

template <class A, int kQk, int kV>
void launch_backward(device::Stream stream, const BackwardArguments<A>& arguments,
                     std::int64_t blocks, bool whole) {
  using Kernels = BackwardKernels<kQk, kV>;
  if (whole)
    launch_shape<A, typename Kernels::Whole>(stream, arguments, blocks);
  else
    launch_shape<A, typename Kernels::Other>(stream, arguments, blocks);
}

}  // namespace longstride::ops::cuda
