#include "ops/attention/attention_amx_backward.h"
#include "ops/attention/attention_amx_forward.h"

namespace longstride::ops::cpu {

const TileKernels kEmulatedKernels = {
    [](const ForwardRows& rows, const LaneBlock& lane, const ForwardSpace& space) {
      ForwardTiles<EmulatedUnit>(rows, lane, space).run();
    },
    [](const BackwardRows& rows, const LaneBlock& lane, const BackwardSpace& space) {
      BackwardTiles<EmulatedUnit>(rows, lane, space).run();
    },
};

}  // namespace longstride::ops::cpu
