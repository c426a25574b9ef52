#include "ops/linear/row_end_sm90.cuh"

namespace longstride::ops::cuda::row_end {

template void launch<fp16, true>(device::Stream, const CUtensorMap&, const CUtensorMap&,
                                 const RowEnds<fp16>&, int);
template void launch<fp16, false>(device::Stream, const CUtensorMap&, const CUtensorMap&,
                                  const RowEnds<fp16>&, int);

}  // namespace longstride::ops::cuda::row_end
