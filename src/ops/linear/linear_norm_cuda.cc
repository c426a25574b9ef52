#include "ops/linear/linear_norm_cuda.h"

#include <type_traits>

#include "ops/linear/linear_maps_sm90.h"
#include "ops/linear/row_end_sm90.h"
#include "ops/shape.h"

namespace longstride::ops::cuda {

namespace {

using row_end::RowEnds;

constexpr std::int64_t kWidth = 2 * row_end::kColumns;

// What the kernels ask of addresses: whole packs of four columns, and 16 bytes of the copy engine.
template <class T>
void want_packs(const char* who, const char* name, Matrix<T> m, int pack) {
  if (!m.empty() && (m.stride % pack != 0 || reinterpret_cast<std::uintptr_t>(m.data) %
                                                     (static_cast<std::size_t>(pack) * sizeof(T)) !=
                                                 0))
    throw invalid_argument(who, ": ", name, " begins at ", static_cast<const void*>(m.data),
                           " with a row stride of ", m.stride, ", want multiples of ", pack,
                           " elements");
}

void want_taken(const char* who, bool taken, std::int64_t rows, std::int64_t d,
                std::int64_t inner) {
  if (!taken || rows > kMostRows)
    throw invalid_argument(who, ": ", rows, " rows of ", d, " by sums of ", inner,
                           ", want what ends_in_norm() takes");
}

}  // namespace

template <class A>
bool ends_in_norm(std::int64_t width, std::int64_t inner) {
  return sizeof(A) == 2 && device::is_hopper() && width == kWidth && inner % 8 == 0 &&
         inner <= kLongestSum;
}

template <class A>
void linear_residual_norm(device::Stream stream, const LinearResidualNorm<A>& op) {
  constexpr auto kWho = "linear_residual_norm";
  const std::int64_t R = op.h.rows, d = op.h.cols;
  want_taken(kWho, ends_in_norm<A>(d, op.x.cols), R, d, op.x.cols);
  want_shape(kWho, "h", op.h, R, d);
  want_shape(kWho, "xhat", op.xhat, R, d);
  if (!op.rstd.empty()) want_size(kWho, "rstd", op.rstd, R);
  want_packs(kWho, "h", op.h, 4);
  want_packs(kWho, "xhat", op.xhat, 4);
  if (R == 0) return;
  if constexpr (sizeof(A) == 2) {
    RowEnds<A> ends = {.rows = R,
                       .stream = op.h.data,
                       .stream_stride = op.h.stride,
                       .xhat = op.xhat.data,
                       .xhat_stride = op.xhat.stride,
                       .rstd = op.rstd.data,
                       .eps = op.eps};
    if (op.weight.empty()) return row_end::launch_norm(stream, ends);
    want_shape(kWho, "x", op.x, R, op.x.cols);
    want_shape(kWho, "weight", op.weight, op.x.cols, d);
    if (!op.bias.empty()) want_size(kWho, "bias", op.bias, d);
    want_packs(kWho, "x", op.x, 8);
    want_packs(kWho, "weight", op.weight, 8);
    ends.bias = op.bias.data;
    ends.draws = draws_of(kWho, op.dropout, op.device_step, d);
    row_end::launch<A, true>(stream, map_of(op.x, row_end::kRows / 2), map_of(op.weight), ends,
                             deep(op.x.cols));
  }
}

template <class A>
void linear_norm_backward(device::Stream stream, const LinearNormBackward<A>& op) {
  constexpr auto kWho = "linear_norm_backward";
  const std::int64_t R = op.dh.rows, d = op.dh.cols;
  want_taken(kWho, ends_in_norm<A>(d, op.dy.cols), R, d, op.dy.cols);
  want_shape(kWho, "dy", op.dy, R, op.dy.cols);
  want_shape(kWho, "weight", op.weight, d, op.dy.cols);
  want_shape(kWho, "xhat", op.xhat, R, d);
  want_size(kWho, "rstd", op.rstd, R);
  want_shape(kWho, "dh", op.dh, R, d);
  if (!op.dbranch.empty()) want_shape(kWho, "dbranch", op.dbranch, R, d);
  want_packs(kWho, "dy", op.dy, 8);
  want_packs(kWho, "weight", op.weight, 8);
  want_packs(kWho, "xhat", op.xhat, 4);
  want_packs(kWho, "dh", op.dh, 4);
  want_packs(kWho, "dbranch", op.dbranch, 4);
  if (R == 0) return;
  if constexpr (sizeof(A) == 2) {
    const RowEnds<A> ends = {.rows = R,
                             .stream = op.dh.data,
                             .stream_stride = op.dh.stride,
                             .xhat_in = op.xhat.data,
                             .xhat_stride = op.xhat.stride,
                             .rstd_in = op.rstd.data,
                             .dbranch = op.dbranch.data,
                             .dbranch_stride = op.dbranch.stride,
                             .draws = draws_of(kWho, op.dropout, op.device_step, d)};
    row_end::launch<A, false>(stream, map_of(op.dy, row_end::kRows / 2), reordered<2>(op.weight),
                              ends, deep(op.dy.cols));
  }
}

template bool ends_in_norm<float>(std::int64_t, std::int64_t);
template bool ends_in_norm<bf16>(std::int64_t, std::int64_t);
template bool ends_in_norm<fp16>(std::int64_t, std::int64_t);
template void linear_residual_norm(device::Stream, const LinearResidualNorm<float>&);
template void linear_residual_norm(device::Stream, const LinearResidualNorm<bf16>&);
template void linear_residual_norm(device::Stream, const LinearResidualNorm<fp16>&);
template void linear_norm_backward(device::Stream, const LinearNormBackward<float>&);
template void linear_norm_backward(device::Stream, const LinearNormBackward<bf16>&);
template void linear_norm_backward(device::Stream, const LinearNormBackward<fp16>&);

}  // namespace longstride::ops::cuda
