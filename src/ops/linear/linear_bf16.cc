// Products of bf16 where the CPU has no instructions for them: widened, multiplied in float,
// rounded at the end.
#include <algorithm>
#include <vector>

#include "base/threads.h"
#include "ops/linear/linear.h"

namespace longstride::ops::cpu {

namespace {

struct Widened {
  explicit Widened(Matrix<const bf16> m)
      : values(static_cast<std::size_t>(m.rows * m.cols)),
        view{values.data(), m.rows, m.cols, m.cols} {
    parallel_ranges(m.rows, 64, [&](std::int64_t begin, std::int64_t end) {
      for (std::int64_t r = begin; r < end; ++r)
        for (std::int64_t c = 0; c < m.cols; ++c) view.row(r)[c] = static_cast<float>(m.row(r)[c]);
    });
  }
  std::vector<float> values;
  Matrix<float> view;
};

void round(Matrix<const float> from, Matrix<bf16> to) {
  parallel_ranges(to.rows, 64, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t r = begin; r < end; ++r)
      for (std::int64_t c = 0; c < to.cols; ++c) to.row(r)[c] = bf16(from.row(r)[c]);
  });
}

}  // namespace

void linear_forward(const Linear<bf16, float>& op) {
  const Widened x(op.x), weight(op.weight);
  cpu::linear_forward(Linear<float>{x.view, weight.view, op.bias, op.y});
}

void linear_forward(const Linear<bf16>& op) {
  std::vector<float> y(static_cast<std::size_t>(op.y.rows * op.y.cols));
  const Matrix<float> out{y.data(), op.y.rows, op.y.cols, op.y.cols};
  cpu::linear_forward(Linear<bf16, float>{op.x, op.weight, op.bias, out});
  round(out, op.y);
}

void linear_backward(const LinearBackward<bf16, float>& op) {
  const Widened x(op.x), weight(op.weight), dy(op.dy);
  cpu::linear_backward(LinearBackward<float>{x.view, weight.view, dy.view, op.dx, op.add_to_dx,
                                             op.dweight, op.dbias});
}

void linear_backward(const LinearBackward<bf16>& op) {
  std::vector<float> dx(static_cast<std::size_t>(op.dx.rows * op.dx.cols));
  Matrix<float> out{op.dx.empty() ? nullptr : dx.data(), op.dx.rows, op.dx.cols, op.dx.cols};
  cpu::linear_backward(
      LinearBackward<bf16, float>{op.x, op.weight, op.dy, out, false, op.dweight, op.dbias});
  if (!op.dx.empty()) round(out, op.dx);
}

}  // namespace longstride::ops::cpu
