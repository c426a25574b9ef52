#include "ops/linear/row_end_sm90.cuh"

namespace longstride::ops::cuda::row_end {

template void launch<bf16, true>(device::Stream, const CUtensorMap&, const CUtensorMap&,
                                 const RowEnds<bf16>&, int);
template void launch<bf16, false>(device::Stream, const CUtensorMap&, const CUtensorMap&,
                                  const RowEnds<bf16>&, int);

}  // namespace longstride::ops::cuda::row_end
