// Instances and launches of resident_sm90.cuh.
#pragma once

#include <algorithm>

#include "ops/linear/resident_sm90.cuh"

namespace longstride::ops::cuda::resident {

template <class A, bool kAcross, End kEnd>
void launch_as(device::Stream stream, const CUtensorMap& x, const CUtensorMap& b,
               const Ends<A>& ends, int deep) {
  const auto entry = kernel<A, kAcross, kEnd>;
  static const bool prepared = [&] {
    device::check(cudaFuncSetAttribute(entry, cudaFuncAttributeMaxDynamicSharedMemorySize, kShared),
                  "linear: shared memory");
    return true;
  }();
  static_cast<void>(prepared);
  const int pairs = (ends.columns + 2 * kTile - 1) / (2 * kTile);
  const auto tiles = static_cast<int>((ends.rows + kTile - 1) / kTile);
  const int along = std::clamp(device::multiprocessors() / 2 / pairs, 1, tiles);
  cudaLaunchAttribute attributes[2] = {{}, device::early_launch()};
  attributes[0].id = cudaLaunchAttributeClusterDimension;
  attributes[0].val.clusterDim = {2, 1, 1};
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(static_cast<unsigned>(2 * pairs * along));
  config.blockDim = dim3(kThreads);
  config.dynamicSmemBytes = kShared;
  config.stream = stream;
  config.attrs = attributes;
  config.numAttrs = 2;
  device::check(cudaLaunchKernelEx(&config, entry, x, b, ends, deep, pairs), "linear");
  device::launched(stream, "linear ", ends.rows, "x", deep * kDeep, "x", ends.columns);
}

template <class A, bool kAcross>
void launch(device::Stream stream, End end, const CUtensorMap& x, const CUtensorMap& b,
            const Ends<A>& ends, int deep) {
  if (end == End::kRound) return launch_as<A, kAcross, End::kRound>(stream, x, b, ends, deep);
  if constexpr (kAcross) {
    if (end == End::kFloat) return launch_as<A, true, End::kFloat>(stream, x, b, ends, deep);
    return launch_as<A, true, End::kActivation>(stream, x, b, ends, deep);
  } else {
    launch_as<A, false, End::kActivationGradient>(stream, x, b, ends, deep);
  }
}

}  // namespace longstride::ops::cuda::resident
