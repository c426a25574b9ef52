// A block takes a sequence. Some d (3 + axes) bytes a row: the launch binds.
#include "ops/embedding/embedding_step_cuda.h"

namespace longstride::ops::cuda {

namespace {

constexpr int kThreads = 256, kAxes = 4;

struct Args {
  const std::uint8_t* tokens;
  std::int64_t token_stride;
  const std::int32_t* positions;
  const float *bytes, *start;
  std::int64_t bytes_stride;
  const float* axes[kAxes];  // the last axis, which is the fastest, first
  std::int64_t axis_stride[kAxes];
  std::int32_t extent[kAxes];
  int axis_count;
  float* y;
  std::int64_t y_stride, width;
};

__global__ void __launch_bounds__(kThreads) embedding_step_kernel(Args a) {
  const std::int64_t sequence = blockIdx.x;
  const std::int32_t position = a.positions[sequence];
  float* const y = a.y + sequence * a.y_stride;
  if (position == 0) {
    for (std::int64_t c = threadIdx.x; c < a.width; c += kThreads) y[c] = a.start[c];
    return;
  }
  const float* const byte =
      a.bytes + a.tokens[sequence * a.token_stride + position - 1] * a.bytes_stride;
  const float* row[kAxes];
  std::int32_t rest = position - 1;
#pragma unroll
  for (int n = 0; n < kAxes; ++n) {
    if (n >= a.axis_count) break;
    row[n] = a.axes[n] + rest % a.extent[n] * a.axis_stride[n];
    rest /= a.extent[n];
  }
  for (std::int64_t c = threadIdx.x; c < a.width; c += kThreads) {
    float sum = byte[c];
#pragma unroll
    for (int n = 0; n < kAxes; ++n)
      if (n < a.axis_count) sum += row[n][c];
    y[c] = sum;
  }
}

__global__ void next_position_kernel(std::int32_t* positions, int count) {
  const int s = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
  if (s < count) ++positions[s];
}

}  // namespace

void embedding_step(device::Stream stream, const EmbeddingStep& op) {
  const std::int64_t width = op.y.cols;
  if (op.axes.size() > kAxes)
    throw invalid_argument("embedding_step: ", op.axes.size(), " axes, want at most ", kAxes);
  if (op.tokens == nullptr || op.positions == nullptr || op.y.rows < 1)
    throw invalid_argument("embedding_step: no tokens, positions or rows");
  bool fits = op.bytes.rows == 256 && op.bytes.cols == width && op.start.size == width;
  for (const auto& axis : op.axes) fits = fits && axis.cols == width;
  if (!fits)
    throw invalid_argument("embedding_step: tables ", op.bytes.rows, "x", op.bytes.cols, ", start ",
                           op.start.size, ", y of width ", width, ", want them to fit");
  Args args{};
  args.tokens = op.tokens;
  args.token_stride = op.stride;
  args.positions = op.positions;
  args.bytes = op.bytes.data;
  args.bytes_stride = op.bytes.stride;
  args.start = op.start.data;
  for (auto axis = op.axes.rbegin(); axis != op.axes.rend(); ++axis) {
    args.axes[args.axis_count] = axis->data;
    args.axis_stride[args.axis_count] = axis->stride;
    args.extent[args.axis_count++] = static_cast<std::int32_t>(axis->rows);
  }
  args.y = op.y.data;
  args.y_stride = op.y.stride;
  args.width = width;
  embedding_step_kernel<<<static_cast<unsigned>(op.y.rows), kThreads, 0, stream>>>(args);
  device::launched(stream, "embedding_step of ", op.y.rows, " sequences, width ", width);
}

void next_position(device::Stream stream, Vector<std::int32_t> positions) {
  constexpr int kBlock = 64;
  const auto blocks = static_cast<unsigned>((positions.size + kBlock - 1) / kBlock);
  next_position_kernel<<<blocks, kBlock, 0, stream>>>(positions.data,
                                                      static_cast<int>(positions.size));
  device::launched(stream, "next_position of ", positions.size, " sequences");
}

}  // namespace longstride::ops::cuda
