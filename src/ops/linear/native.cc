// One oneDNN product is one task: a tile of the output over the whole inner dimension, on the one
// thread that tasks leave to a library. So bits depend on the shape and the CPU alone.
//
// Forward and dx: the right operand (W) is packed once a call into the format that oneDNN asks for
// (whatever it is: any blocked format is a sum of an offset by row and one by column). dW: both
// operands as they lie; oneDNN copies them.
// Primitives are made once per thread and shape.
#include "ops/linear/native.h"

#include <hwy/targets.h>

#include <algorithm>
#include <dnnl.hpp>
#include <map>
#include <memory>
#include <string_view>
#include <tuple>
#include <unordered_map>
#include <vector>

#include "base/integers.h"
#include "base/threads.h"
#include "ops/linear/scratch.h"

namespace longstride::ops::cpu {

namespace {

using dnnl::memory;

// Below this many rows the call costs more than it saves.
constexpr std::int64_t kRows = 128, kCols = 512, kPackRows = 32;

// Whether oneDNN multiplies bf16 here. Respects a choice of instruction sets forced on Highway.
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

// A column tile of the right operand.
template <class A>
struct Panel {
  std::int64_t at, cols;
  const Multiplication* by;
  A* packed;
};

template <class A>
void pack(Operand<A> b, std::int64_t k, std::int64_t rows, const Panel<A>& panel) {
  const Offsets& to = panel.by->offsets();
  for (std::int64_t n = 0; n < panel.cols; ++n)
    for (std::int64_t i = k; i < k + rows; ++i)
      panel.packed[to.rows[static_cast<std::size_t>(i)] + to.cols[static_cast<std::size_t>(n)]] =
          *b.from(i, panel.at + n).data;
}

template <class A, class C>
bool multiply_tiles(const Product<A, C>& p) {
  const std::int64_t N = p.c.cols, rows = p.c.rows / kRows * kRows;
  const bool added = p.start.data && p.start.stride != 0;
  if (rows == 0 || p.K == 0) return false;
  const auto shape = [&](std::int64_t cols) {
    return Shape{kRows,      cols,           p.K,     p.a.stride,
                 p.c.stride, p.a.transposed, 0,       p.start.data && !added,
                 added,      kType<A>,       kType<C>};
  };
  thread_local std::vector<Panel<A>> kept;
  thread_local ScratchOf<A> packed;
  std::vector<Panel<A>>& panels = kept;
  panels.clear();
  bool possible = true;
  parallel_for(1, [&](std::int64_t) {  // one task: this thread runs it
    std::int64_t size = 0;
    for (std::int64_t n = 0; n < N && possible; n += kCols) {
      const std::int64_t cols = std::min(kCols, N - n);
      const Multiplication& by = multiplication(shape(cols));
      possible = by.possible();
      panels.push_back({n, cols, &by, nullptr});
      if (possible) size += by.packed_bytes() / static_cast<std::int64_t>(sizeof(A));
    }
    A* at = packed.at_least(size);
    for (Panel<A>& panel : panels) {
      panel.packed = at;
      if (possible) at += panel.by->packed_bytes() / static_cast<std::int64_t>(sizeof(A));
    }
  });
  if (!possible) return false;
  const std::int64_t chunks = ceil_div(p.K, kPackRows);
  const std::int64_t across = static_cast<std::int64_t>(panels.size());
  parallel_for(across * chunks, [&](std::int64_t task) {
    const std::int64_t k = task % chunks * kPackRows;
    pack(p.b, k, std::min(kPackRows, p.K - k), panels[static_cast<std::size_t>(task / chunks)]);
  });
  parallel_for(rows / kRows * across, [&](std::int64_t task) {
    const std::int64_t r = task / across * kRows;
    const Panel<A>& panel = panels[static_cast<std::size_t>(task % across)];
    multiplication(shape(panel.cols))
        .run(p.a.from(r, 0).data, static_cast<const A*>(panel.packed),
             added ? nullptr : p.start.from(0, panel.at).data, p.c.row(r) + panel.at);
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

template <class A>
bool gradient_tile(const GradientTile<A>& t) {
  if (t.c.rows == 0 || t.c.cols == 0 || t.x.rows < kRows) return false;
  Multiplication& by =
      multiplication(Shape{t.c.rows, t.c.cols, t.x.rows, t.x.stride, t.c.stride, true, t.dy.stride,
                           false, t.start.data != nullptr, kType<A>, kType<float>});
  if (!by.possible()) return false;
  by.run(t.x.data, t.dy.data, nullptr, t.c.data);
  return true;
}

}  // namespace

bool multiply_natively(const Product<bf16, float>& p) { return available() && multiply_tiles(p); }
bool multiply_natively(const Product<bf16, bf16>& p) { return available() && multiply_tiles(p); }
bool multiply_tile_natively(const GradientTile<bf16>& t) { return available() && gradient_tile(t); }

}  // namespace longstride::ops::cpu
