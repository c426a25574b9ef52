#include "ops/linear/resident_launch_sm90.cuh"

namespace longstride::ops::cuda::resident {

template void launch<bf16, true>(device::Stream, End, const CUtensorMap&, const CUtensorMap&,
                                 const Ends<bf16>&, int);
template void launch<bf16, false>(device::Stream, End, const CUtensorMap&, const CUtensorMap&,
                                  const Ends<bf16>&, int);

}  // namespace longstride::ops::cuda::resident
