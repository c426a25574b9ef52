#include "ops/linear/linear_sm90.h"

#include <type_traits>

#include "ops/linear/linear_lt_cuda.h"
#include "ops/linear/linear_maps_sm90.h"
#include "ops/linear/linear_split.h"
#include "ops/linear/resident_sm90.h"
#include "ops/linear/weight_gradient_sm90.h"

namespace longstride::ops::cuda::sm90 {

namespace {

using resident::End, resident::Ends;

constexpr std::int64_t kLeastRows = 256;

template <class T>
bool suits(Matrix<T> m) {
  return reinterpret_cast<std::uintptr_t>(m.data) % 16 == 0 && m.cols % 8 == 0 && m.stride % 8 == 0;
}

template <class A>
bool suits(Matrix<const A> left, Matrix<const A> weight, std::int64_t inner) {
  return device::is_hopper() && left.rows >= kLeastRows && left.rows <= kMostRows &&
         inner <= kLongestSum && suits(left) && suits(weight);
}

template <class A>
void forward(device::Stream stream, End end, Matrix<const A> x, Matrix<const A> weight,
             Ends<A> ends) {
  ends.rows = x.rows;
  ends.columns = static_cast<int>(weight.cols);
  resident::launch<A, true>(stream, end, map_of(x), map_of(weight), ends, deep(x.cols));
}

template <class A>
void backward(device::Stream stream, End end, Matrix<const A> dy, Matrix<const A> weight,
              Ends<A> ends) {
  ends.rows = dy.rows;
  ends.columns = static_cast<int>(weight.rows);
  resident::launch<A, false>(stream, end, map_of(dy), reordered<4>(weight), ends, deep(dy.cols));
}

// Two multiprocessors take a row of a tile in 11.8 ns, in which the card moves 35 KB; a tile starts
// and ends in 4.5 us. The tensor cores cut each sum of 16 terms off below the last place: 16,384
// rows lose up to 1e-4.
constexpr SplitCosts kCosts = {.tile_rows = weight_gradient::kTile,
                               .tile_cols = weight_gradient::kTile,
                               .bytes_per_row = 35e3,
                               .setup_rows = 384,
                               .most_rows = 16384};

}  // namespace

template <class A, class Y>
bool linear(device::Stream stream, const Linear<A, Y>& op) {
  if constexpr (std::is_same_v<A, float>) {
    return false;
  } else {
    if (!suits(op.x, op.weight, op.x.cols) || !suits(op.y)) return false;
    Ends<A> ends;
    ends.bias = op.bias.data;
    ends.first_stride = op.y.stride;
    if constexpr (std::is_same_v<Y, float>) {
      ends.sums = op.y.data;
      forward(stream, End::kFloat, op.x, op.weight, ends);
    } else {
      ends.first = op.y.data;
      forward(stream, End::kRound, op.x, op.weight, ends);
    }
    return true;
  }
}

template <class A>
bool linear_activation(device::Stream stream, const LinearActivation<A>& op) {
  if constexpr (std::is_same_v<A, float>) {
    return false;
  } else {
    if (op.y.empty()) return linear(stream, Linear<A>{op.x, op.weight, op.bias, op.pre});
    if (!suits(op.x, op.weight, op.x.cols) || !suits(op.y)) return false;
    if (!op.pre.empty() && !suits(op.pre)) return false;
    Ends<A> ends;
    ends.bias = op.bias.data;
    ends.first = op.pre.data;
    ends.first_stride = op.pre.stride;
    ends.second = op.y.data;
    ends.second_stride = op.y.stride;
    forward(stream, End::kActivation, op.x, op.weight, ends);
    return true;
  }
}

template <class A>
bool linear_input_gradient(device::Stream stream, const LinearInputGradient<A>& op) {
  if constexpr (std::is_same_v<A, float>) {
    return false;
  } else {
    if (!suits(op.dy, op.weight, op.dy.cols) || !suits(op.dx) || op.dx.cols % 32 != 0) return false;
    Ends<A> ends;
    ends.first = op.dx.data;
    ends.first_stride = op.dx.stride;
    backward(stream, End::kRound, op.dy, op.weight, ends);
    return true;
  }
}

template <class A>
bool linear_activation_gradient(device::Stream stream, const LinearActivationGradient<A>& op) {
  if constexpr (std::is_same_v<A, float>) {
    return false;
  } else {
    if (!suits(op.dy, op.weight, op.dy.cols) || !suits(op.pre) || !suits(op.dpre) || !suits(op.y) ||
        op.y.cols % 32 != 0)
      return false;
    Ends<A> ends;
    ends.pre = op.pre.data;
    ends.pre_stride = op.pre.stride;
    ends.first = op.dpre.data;
    ends.first_stride = op.dpre.stride;
    ends.second = op.y.data;
    ends.second_stride = op.y.stride;
    backward(stream, End::kActivationGradient, op.dy, op.weight, ends);
    return true;
  }
}

template <class A>
bool linear_weight_gradient(LinearContext& context, device::Stream stream,
                            const LinearWeightGradient<A>& op) {
  if constexpr (std::is_same_v<A, float>) {
    return false;
  } else {
    const std::int64_t rows = op.x.rows, in = op.x.cols, out = op.dy.cols;
    const std::int64_t most = kScratchFloats / (weight_gradient::kTile * weight_gradient::kTile);
    if (!device::is_hopper() || !suits(op.x) || !suits(op.dy) || rows < kLeastRows ||
        rows > kMostRows || in * out > most * weight_gradient::kTile * weight_gradient::kTile ||
        reinterpret_cast<std::uintptr_t>(op.dweight.data) % 8 != 0)
      return false;
    weight_gradient::Split split = {rows, static_cast<int>(in), static_cast<int>(out), 0, 1};
    const std::int64_t room =
        kScratchFloats * split.part_floats() / (split.part_floats() + split.sum_floats());
    const RowSplit parts = split_rows(rows, split.tiles_in() * weight_gradient::kTile,
                                      split.tiles_out() * weight_gradient::kTile,
                                      device::multiprocessors() / 2, room, kCosts);
    split.chunk = static_cast<int>((parts.chunk + 63) / 64 * 64);
    split.parts = static_cast<int>(parts.parts);
    if (split.scratch_floats() > kScratchFloats) return false;
    weight_gradient::launch<A>(stream, map_of(op.x), map_of(op.dy), split, scratch(context),
                               op.dweight.data, op.dbias.data, op.add);
    return true;
  }
}

template bool linear(device::Stream, const Linear<float>&);
template bool linear(device::Stream, const Linear<bf16>&);
template bool linear(device::Stream, const Linear<fp16>&);
template bool linear(device::Stream, const Linear<bf16, float>&);
template bool linear(device::Stream, const Linear<fp16, float>&);
template bool linear_activation(device::Stream, const LinearActivation<float>&);
template bool linear_activation(device::Stream, const LinearActivation<bf16>&);
template bool linear_activation(device::Stream, const LinearActivation<fp16>&);
template bool linear_input_gradient(device::Stream, const LinearInputGradient<float>&);
template bool linear_input_gradient(device::Stream, const LinearInputGradient<bf16>&);
template bool linear_input_gradient(device::Stream, const LinearInputGradient<fp16>&);
template bool linear_activation_gradient(device::Stream, const LinearActivationGradient<float>&);
template bool linear_activation_gradient(device::Stream, const LinearActivationGradient<bf16>&);
template bool linear_activation_gradient(device::Stream, const LinearActivationGradient<fp16>&);
template bool linear_weight_gradient(LinearContext&, device::Stream,
                                     const LinearWeightGradient<float>&);
template bool linear_weight_gradient(LinearContext&, device::Stream,
                                     const LinearWeightGradient<bf16>&);
template bool linear_weight_gradient(LinearContext&, device::Stream,
                                     const LinearWeightGradient<fp16>&);

}  // namespace longstride::ops::cuda::sm90
