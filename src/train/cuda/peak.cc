#include "train/cuda/peak.h"

#include <algorithm>
#include <cstdint>
#include <vector>

#include "base/rng.h"
#include "device/cuda.h"
#include "device/device.h"
#include "ops/linear/linear_cuda.h"
#include "tensor/bf16.h"
#include "tensor/fp16.h"

namespace longstride {

namespace {

// Standard normals, the same few million of them over and over.
template <class A>
device::DeviceBuffer<A> random_square(device::Stream stream, std::int64_t n) {
  const std::int64_t chunk = std::min<std::int64_t>(n * n, std::int64_t{1} << 20);
  std::vector<A> values(static_cast<std::size_t>(chunk));
  for (std::int64_t i = 0; i < chunk; ++i)
    values[static_cast<std::size_t>(i)] = A(static_cast<float>(
        normal2(random4(1, longstride::Stream::test, 0, static_cast<std::uint64_t>(i)))[0]));
  device::DeviceBuffer<A> out(n * n);
  const std::int64_t bytes = chunk * static_cast<std::int64_t>(sizeof(A));
  for (std::int64_t at = 0; at < n * n; at += chunk)
    device::copy(stream, out.data() + at, values.data(), bytes);
  device::synchronize(stream);
  return out;
}

}  // namespace

template <class A>
double measure_device_peak() {
  constexpr int kWarm = 3, kTimed = 10;
  std::int64_t n = sizeof(A) == sizeof(float) ? 4096 : 8192;
  while (n > 1024 &&
         3 * n * n * static_cast<std::int64_t>(sizeof(A)) > device::devices().at(0).free / 2)
    n /= 2;
  const device::StreamOwner owner;
  const auto x = random_square<A>(owner.stream, n), w = random_square<A>(owner.stream, n);
  const device::DeviceBuffer<A> y(n * n);
  ops::cuda::LinearContext context;
  device::Event begin, end;
  for (int i = 0; i < kWarm + kTimed; ++i) {
    if (i == kWarm) begin.record(owner.stream);
    ops::cuda::linear(context, owner.stream,
                      ops::cuda::Linear<A>{x.matrix(n, n), w.matrix(n, n), {}, y.matrix(n, n)});
  }
  end.record(owner.stream);
  end.wait();
  const auto side = static_cast<double>(n);
  return kTimed * 2 * side * side * side / end.seconds_since(begin);
}

template double measure_device_peak<float>();
template double measure_device_peak<bf16>();
template double measure_device_peak<fp16>();

}  // namespace longstride
