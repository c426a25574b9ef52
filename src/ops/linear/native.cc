// One oneDNN product is one task: a tile of the output over the whole inner dimension, on the one
// thread that tasks leave to a library. So bits depend on the shape and the CPU alone.
//
// Forward and dx: tasks are blocks of rows; the right operand (W) is packed once a call into the
// format that oneDNN asks for (whatever it is: in a blocked format an element's offset is the sum
// of one by its row and one by its column). dW: tasks are tiles.
// oneDNN 2.6 has its fast kernels (brgemm) for dense matrices only: tiles are copied out of rows
// that are longer, sums are kept in dense memory.
// Primitives are made once per thread and shape.
#include "ops/linear/native.h"

#include <hwy/targets.h>

#include <algorithm>
#include <dnnl.hpp>
#include <map>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "base/integers.h"
#include "base/threads.h"
#include "longstride/error.h"
#include "ops/scratch.h"

namespace longstride::ops::cpu {

namespace {

using dnnl::memory;

constexpr std::int64_t kRows = 128, kFewRows = 64;  // of a task where rows are many, and few
constexpr std::int64_t kTasks = 16;                 // enough for many threads
constexpr std::int64_t kDepth = 512;                // rows of x and dy in one call for dW

// Respects a choice of instruction sets forced on Highway.
bool available() {
  static const bool has_bf16 = [] {
    const auto isa = static_cast<unsigned>(dnnl::get_effective_cpu_isa());
    constexpr auto kWanted = static_cast<unsigned>(dnnl::cpu_isa::avx512_core_bf16);
    return (isa & kWanted) == kWanted;
  }();
#if HWY_ARCH_X86
  return has_bf16 && (hwy::SupportedTargets() & (HWY_AVX3 | HWY_AVX3_DL)) != 0;
#else
  return has_bf16;
#endif
}

const dnnl::engine& engine() {
  static const dnnl::engine cpu(dnnl::engine::kind::cpu, 0);
  return cpu;
}

template <class T>
constexpr memory::data_type kType = memory::data_type::bf16;
template <>
constexpr memory::data_type kType<float> = memory::data_type::f32;

// What a primitive is made for: c [M, N] = a b (+ bias) or c += a b.
struct Shape {
  std::int64_t M, N, K, a_stride, c_stride;
  bool a_transposed;
  std::int64_t b_stride;  // 0: in the format that oneDNN wants
  bool biased, added;
  memory::data_type type, c_type;

  friend auto operator<=>(const Shape&, const Shape&) = default;
};

// Where element (k, n) of the packed operand lies: rows[k] + cols[n].
struct Offsets {
  std::vector<std::int64_t> rows, cols;
};

std::vector<std::int64_t> offsets_along(const dnnl_memory_desc_t& md, int dim) {
  const dnnl_blocking_desc_t& format = md.format_desc.blocking;
  std::vector<std::int64_t> offsets;
  for (std::int64_t i = 0; i < md.dims[dim]; ++i) {
    std::int64_t offset = 0, stride = 1, rest = i;
    for (int b = format.inner_nblks - 1; b >= 0; stride *= format.inner_blks[b--])
      if (format.inner_idxs[b] == dim) {
        offset += rest % format.inner_blks[b] * stride;
        rest /= format.inner_blks[b];
      }
    offsets.push_back(offset + rest * format.strides[dim]);
  }
  return offsets;
}

class Multiplication {
 public:
  explicit Multiplication(const Shape& s) {
    const auto strides = [](std::int64_t stride, bool transposed) {
      return transposed ? memory::dims{1, stride} : memory::dims{stride, 1};
    };
    const memory::desc a({s.M, s.K}, s.type, strides(s.a_stride, s.a_transposed));
    const memory::desc b = s.b_stride ? memory::desc({s.K, s.N}, s.type, strides(s.b_stride, false))
                                      : memory::desc({s.K, s.N}, s.type, memory::format_tag::any);
    const memory::desc bias({1, s.N}, memory::data_type::f32, memory::format_tag::ab);
    const memory::desc c({s.M, s.N}, s.c_type, strides(s.c_stride, false));
    dnnl::primitive_attr attributes;
    attributes.set_scratchpad_mode(dnnl::scratchpad_mode::user);
    if (s.added) {
      dnnl::post_ops ops;
      ops.append_sum(1.0f);
      attributes.set_post_ops(ops);
    }
    const dnnl::matmul::desc what =
        s.biased ? dnnl::matmul::desc(a, b, bias, c) : dnnl::matmul::desc(a, b, c);
    const dnnl::matmul::primitive_desc how(what, attributes, engine(), true);
    if (!how || std::string_view(how.impl_info_str()).find("ref") != std::string_view::npos) return;
    b_ = how.weights_desc();
    const dnnl_memory_desc_t& md = b_.data;
    if (md.format_kind != dnnl_blocked || md.offset0 != 0 || md.extra.flags != 0 ||
        !std::equal(md.dims, md.dims + 2, md.padded_dims))
      return;  // a format with more in it than the values
    if (!s.b_stride) offsets_ = {offsets_along(md, 0), offsets_along(md, 1)};
    const auto argument = [&](int name, const memory::desc& desc) {
      arguments_.emplace(name, memory(desc, engine(), nullptr));
    };
    argument(DNNL_ARG_SRC, a);
    argument(DNNL_ARG_WEIGHTS, b_);
    argument(DNNL_ARG_DST, c);
    argument(DNNL_ARG_SCRATCHPAD, how.scratchpad_desc());
    if (s.biased) argument(DNNL_ARG_BIAS, bias);
    scratchpad_ = static_cast<std::int64_t>(how.scratchpad_desc().get_size());
    primitive_ = dnnl::matmul(how);
  }

  bool possible() const { return static_cast<bool>(primitive_); }
  const Offsets& offsets() const { return offsets_; }
  std::int64_t packed_bytes() const { return static_cast<std::int64_t>(b_.get_size()); }

  template <class A, class C>
  void run(const A* a, const A* b, const float* bias, C* c) {
    thread_local dnnl::stream stream(engine());
    thread_local ScratchOf<unsigned char> scratchpad;
    const auto set = [&](int name, const void* data) {
      arguments_.at(name).set_data_handle(const_cast<void*>(data));
    };
    set(DNNL_ARG_SRC, a);
    set(DNNL_ARG_WEIGHTS, b);
    set(DNNL_ARG_DST, c);
    set(DNNL_ARG_SCRATCHPAD, scratchpad.at_least(scratchpad_));
    if (bias) set(DNNL_ARG_BIAS, bias);
    primitive_.execute(stream, arguments_);
  }

 private:
  dnnl::matmul primitive_;
  memory::desc b_;
  Offsets offsets_;
  std::unordered_map<int, memory> arguments_;
  std::int64_t scratchpad_ = 0;
};

// Call it in a task: there oneDNN plans for one thread.
Multiplication& multiplication(const Shape& shape) {
  thread_local std::map<Shape, Multiplication> known;
  return known.try_emplace(shape, shape).first->second;
}

// Rows [begin, end) of b to where `to` says.
template <class A>
void pack(Operand<A> b, std::int64_t begin, std::int64_t end, std::int64_t cols, const Offsets& to,
          A* packed) {
  const auto copy = [&](std::int64_t k, std::int64_t n) {
    packed[to.rows[static_cast<std::size_t>(k)] + to.cols[static_cast<std::size_t>(n)]] =
        *b.from(k, n).data;
  };
  if (b.transposed) {
    for (std::int64_t n = 0; n < cols; ++n)
      for (std::int64_t k = begin; k < end; ++k) copy(k, n);
  } else {
    for (std::int64_t k = begin; k < end; ++k)
      for (std::int64_t n = 0; n < cols; ++n) copy(k, n);
  }
}

template <class A, class C>
bool multiply_rows(const Product<A, C>& p) {
  const std::int64_t N = p.c.cols;
  const std::int64_t tile = p.c.rows < kTasks * kRows ? kFewRows : kRows;
  const std::int64_t rows = p.c.rows / tile * tile;
  if (rows == 0 || N == 0 || p.K == 0) return false;
  const bool added = p.start.data && p.start.stride != 0;
  const float* const bias = added ? nullptr : p.start.data;
  const Shape shape{
      tile,  N,        p.K,     p.a.stride, p.c.stride, p.a.transposed, 0, bias != nullptr,
      added, kType<A>, kType<C>};
  const Multiplication* by = nullptr;
  parallel_for(1, [&](std::int64_t) { by = &multiplication(shape); });  // run by this thread
  if (!by->possible()) return false;
  thread_local ScratchOf<A> right;
  A* const packed = right.at_least(by->packed_bytes() / static_cast<std::int64_t>(sizeof(A)));
  parallel_ranges(p.K, ceil_div(p.K, kTasks), [&](std::int64_t begin, std::int64_t end) {
    pack(p.b, begin, end, N, by->offsets(), packed);
  });
  parallel_for(rows / tile, [&](std::int64_t task) {
    const std::int64_t r = task * tile;
    multiplication(shape).run(p.a.from(r, 0).data, packed, bias, p.c.row(r));
  });
  // The rows behind the last tile, too few for a call.
  if (rows < p.c.rows)
    multiply(Product<A, C>{p.a.from(rows, 0),
                           p.b,
                           p.K,
                           p.start.from(rows, 0),
                           {p.c.row(rows), p.c.rows - rows, N, p.c.stride}});
  return true;
}

// m itself where its rows lie side by side, else a copy.
template <class A>
const A* dense(Matrix<const A> m, ScratchOf<A>& scratch) {
  if (m.contiguous()) return m.data;
  A* const copy = scratch.at_least(m.rows * m.cols);
  for (std::int64_t r = 0; r < m.rows; ++r) std::copy_n(m.row(r), m.cols, copy + r * m.cols);
  return copy;
}

template <class A>
bool gradient_tile(const GradientTile<A>& t) {
  thread_local ScratchOf<A> left, right;
  thread_local Scratch sums;
  const std::int64_t K = t.c.rows, N = t.c.cols, R = t.x.rows;
  if (K == 0 || N == 0 || R < kFewRows) return false;
  const bool in_place = t.c.contiguous();
  float* const c = in_place ? t.c.data : sums.at_least(K * N);
  for (std::int64_t r = 0; r < R; r += kDepth) {
    const std::int64_t depth = std::min(kDepth, R - r);
    const bool added = r > 0 || (in_place && t.start.data);
    Multiplication& by =
        multiplication(Shape{K, N, depth, K, N, true, N, false, added, kType<A>, kType<float>});
    if (!by.possible()) {
      if (r == 0) return false;
      throw internal_error("linear: oneDNN has a product of bf16 for ", kDepth, " rows, none for ",
                           depth);
    }
    by.run(dense(Matrix<const A>{t.x.row(r), depth, K, t.x.stride}, left),
           dense(Matrix<const A>{t.dy.row(r), depth, N, t.dy.stride}, right), nullptr, c);
  }
  if (in_place) return true;
  for (std::int64_t k = 0; k < K; ++k) {
    const float *const sum = c + k * N, *const start = t.start.from(k, 0).data;
    for (std::int64_t n = 0; n < N; ++n) t.c.row(k)[n] = start ? start[n] + sum[n] : sum[n];
  }
  return true;
}

}  // namespace

bool multiply_natively(const Product<bf16, float>& p) { return available() && multiply_rows(p); }
bool multiply_natively(const Product<bf16, bf16>& p) { return available() && multiply_rows(p); }
bool multiply_tile_natively(const GradientTile<bf16>& t) { return available() && gradient_tile(t); }

}  // namespace longstride::ops::cpu

namespace longstride::ops {

bool bf16_is_native() { return cpu::available(); }

}  // namespace longstride::ops
