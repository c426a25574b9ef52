#include "ops/linear/linear_cuda.h"

#include <type_traits>

#include "ops/activation/activation_cuda.h"
#include "ops/linear/linear_lt_cuda.h"
#include "ops/linear/linear_sm90.h"
#include "ops/linear/linear_split.h"
#include "ops/linear/linear_sums_cuda.h"
#include "ops/shape.h"

namespace longstride::ops::cuda {

namespace {

template <class T>
constexpr cudaDataType type_of() {
  if constexpr (std::is_same_v<T, bf16>) return CUDA_R_16BF;
  if constexpr (std::is_same_v<T, fp16>) return CUDA_R_16F;
  return CUDA_R_32F;
}

// [rows, cols] = left right
template <class A, class Y>
Product product(Matrix<const A> left, Matrix<const A> right, Matrix<Y> result) {
  return {.type = type_of<A>(),
          .result_type = type_of<Y>(),
          .rows = left.rows,
          .cols = right.cols,
          .inner = left.cols,
          .left = left.data,
          .right = right.data,
          .result = result.data,
          .left_stride = left.stride,
          .right_stride = right.stride,
          .result_stride = result.stride};
}

// The library wants a bias of the type of y, at an address that suits it.
template <class Y>
const Y* bias_for(LinearContext& context, device::Stream stream, Vector<const float> bias) {
  if (bias.size > kScratchFloats)
    throw invalid_argument("linear: bias has ", bias.size, " entries, want at most ",
                           kScratchFloats);
  Y* const copy = reinterpret_cast<Y*>(scratch(context));
  convert(stream, bias, copy);
  return copy;
}

template <class A, class Y>
void forward(LinearContext& context, device::Stream stream, Matrix<const A> x,
             Matrix<const A> weight, Vector<const float> bias, Matrix<Y> y) {
  Product p = product(x, weight, y);
  if (!bias.empty()) p.bias = bias_for<Y>(context, stream, bias);
  multiply(context, stream, p);
}

template <class A>
void times_transposed(LinearContext& context, device::Stream stream, Matrix<const A> dy,
                      Matrix<const A> weight, Matrix<A> dx) {
  Product p = product(dy, weight, dx);
  p.right_transposed = true;
  p.cols = weight.rows;
  multiply(context, stream, p);
}

// The tensor cores cut off below the last place when they add: from 1,000 rows of 2-byte numbers on
// that is more than float loses by rounding, so parts are as many as that asks for and, the library
// splitting well itself, no more. In float a multiprocessor of an H100 takes a row of a tile in
// 72 ns, in which the card moves 216 KB; a sum over 2,048 rows of independent terms is off by 1e-6
// of its length.
template <class A>
constexpr SplitCosts kLibraryCosts = {
    .tile_rows = 128,
    .tile_cols = 128,
    .bytes_per_row = sizeof(A) == 4 ? 216e3 : 1,
    .element_bytes = sizeof(A) == 4 ? 4 : 0,
    .most_rows = sizeof(A) == 4 ? 2048 : 768,
};

template <class A>
void product_over_rows(LinearContext& context, device::Stream stream,
                       const LinearWeightGradient<A>& op) {
  const std::int64_t rows = op.x.rows, size = op.dweight.rows * op.dweight.cols;
  const RowSplit split = split_rows(rows, op.x.cols, op.dy.cols, device::multiprocessors(),
                                    kScratchFloats, kLibraryCosts<A>);
  Product p = product(op.x, op.dy, op.dweight);
  p.left_transposed = true;
  p.rows = op.x.cols;
  p.inner = rows;
  if (split.parts == 1) {
    p.add = op.add;
    return multiply(context, stream, p);
  }
  float* const parts = scratch(context);
  p.result = parts;
  p.inner = split.chunk;
  p.left_step = split.chunk * op.x.stride;
  p.right_step = split.chunk * op.dy.stride;
  p.result_step = size;
  p.count = rows / split.chunk;
  multiply(context, stream, p);
  if (p.count < split.parts) {  // the rows that are left
    const std::int64_t done = p.count * split.chunk;
    p.left = op.x.row(done);
    p.right = op.dy.row(done);
    p.result = parts + p.count * size;
    p.inner = rows - done;
    p.count = 1;
    p.left_step = p.right_step = p.result_step = 0;
    multiply(context, stream, p);
  }
  sum_parts(stream, parts, split.parts, size, op.dweight.data, op.add);
}

}  // namespace

template <class A, class Y>
void linear(LinearContext& context, device::Stream stream, const Linear<A, Y>& op) {
  const std::int64_t R = op.x.rows, in = op.x.cols, out = op.weight.cols;
  want_shape("linear", "x", op.x, R, in);
  want_shape("linear", "weight", op.weight, in, out);
  want_shape("linear", "y", op.y, R, out);
  if (!op.bias.empty()) want_size("linear", "bias", op.bias, out);
  if (R == 0 || sm90::linear(stream, op)) return;
  forward(context, stream, op.x, op.weight, op.bias, op.y);
}

template <class A>
void linear_activation(LinearContext& context, device::Stream stream,
                       const LinearActivation<A>& op) {
  const std::int64_t R = op.x.rows, in = op.x.cols, out = op.weight.cols;
  want_shape("linear_activation", "x", op.x, R, in);
  want_shape("linear_activation", "weight", op.weight, in, out);
  if (!op.y.empty() || op.pre.empty()) want_shape("linear_activation", "y", op.y, R, out);
  want_size("linear_activation", "bias", op.bias, out);
  if (!op.pre.empty()) want_shape("linear_activation", "pre", op.pre, R, out);
  if (R == 0 || sm90::linear_activation(stream, op)) return;
  const Matrix<A> pre = op.pre.empty() ? op.y : op.pre;
  forward(context, stream, op.x, op.weight, op.bias, pre);
  if (!op.y.empty()) activation<A>(stream, pre, op.y);
}

template <class A>
void linear_input_gradient(LinearContext& context, device::Stream stream,
                           const LinearInputGradient<A>& op) {
  const std::int64_t R = op.dy.rows, in = op.weight.rows, out = op.weight.cols;
  want_shape("linear_input_gradient", "dy", op.dy, R, out);
  want_shape("linear_input_gradient", "weight", op.weight, in, out);
  want_shape("linear_input_gradient", "dx", op.dx, R, in);
  if (R == 0 || sm90::linear_input_gradient(stream, op)) return;
  times_transposed(context, stream, op.dy, op.weight, op.dx);
}

template <class A>
void linear_activation_gradient(LinearContext& context, device::Stream stream,
                                const LinearActivationGradient<A>& op) {
  const std::int64_t R = op.dy.rows, in = op.weight.rows, out = op.weight.cols;
  want_shape("linear_activation_gradient", "dy", op.dy, R, out);
  want_shape("linear_activation_gradient", "weight", op.weight, in, out);
  want_shape("linear_activation_gradient", "pre", op.pre, R, in);
  want_shape("linear_activation_gradient", "dpre", op.dpre, R, in);
  want_shape("linear_activation_gradient", "y", op.y, R, in);
  if (R == 0 || sm90::linear_activation_gradient(stream, op)) return;
  times_transposed(context, stream, op.dy, op.weight, op.y);  // dpre may be pre, which is read yet
  activation_backward<A>(stream, op.pre, op.y, op.dpre, op.y);
}

template <class A>
void linear_weight_gradient(LinearContext& context, device::Stream stream,
                            const LinearWeightGradient<A>& op) {
  const std::int64_t R = op.x.rows, in = op.x.cols, out = op.dy.cols;
  want_shape("linear_weight_gradient", "x", op.x, R, in);
  want_shape("linear_weight_gradient", "dy", op.dy, R, out);
  want_shape("linear_weight_gradient", "dweight", op.dweight, in, out);
  if (!op.dweight.contiguous())
    throw invalid_argument("linear_weight_gradient: dweight has a row stride of ",
                           op.dweight.stride, ", want ", out);
  if (!op.dbias.empty()) want_size("linear_weight_gradient", "dbias", op.dbias, out);
  if (R == 0) {
    if (op.add) return;
    device::zero(stream, op.dweight.data, in * out * 4);
    device::zero(stream, op.dbias.data, op.dbias.size * 4);
    return;
  }
  if (sm90::linear_weight_gradient(context, stream, op)) return;
  product_over_rows(context, stream, op);
  if (op.dbias.empty()) return;
  float* const parts = scratch(context);
  const std::int64_t count = sum_rows(stream, op.dy, parts, kScratchFloats);
  sum_parts(stream, parts, count, out, op.dbias.data, op.add);
}

template void linear(LinearContext&, device::Stream, const Linear<float>&);
template void linear(LinearContext&, device::Stream, const Linear<bf16>&);
template void linear(LinearContext&, device::Stream, const Linear<fp16>&);
template void linear(LinearContext&, device::Stream, const Linear<bf16, float>&);
template void linear(LinearContext&, device::Stream, const Linear<fp16, float>&);
template void linear_activation(LinearContext&, device::Stream, const LinearActivation<float>&);
template void linear_activation(LinearContext&, device::Stream, const LinearActivation<bf16>&);
template void linear_activation(LinearContext&, device::Stream, const LinearActivation<fp16>&);
template void linear_input_gradient(LinearContext&, device::Stream,
                                    const LinearInputGradient<float>&);
template void linear_input_gradient(LinearContext&, device::Stream,
                                    const LinearInputGradient<bf16>&);
template void linear_input_gradient(LinearContext&, device::Stream,
                                    const LinearInputGradient<fp16>&);
template void linear_activation_gradient(LinearContext&, device::Stream,
                                         const LinearActivationGradient<float>&);
template void linear_activation_gradient(LinearContext&, device::Stream,
                                         const LinearActivationGradient<bf16>&);
template void linear_activation_gradient(LinearContext&, device::Stream,
                                         const LinearActivationGradient<fp16>&);
template void linear_weight_gradient(LinearContext&, device::Stream,
                                     const LinearWeightGradient<float>&);
template void linear_weight_gradient(LinearContext&, device::Stream,
                                     const LinearWeightGradient<bf16>&);
template void linear_weight_gradient(LinearContext&, device::Stream,
                                     const LinearWeightGradient<fp16>&);

}  // namespace longstride::ops::cuda
