// Folding of norms into weights and the gradients back, against float64.
#include <gtest/gtest.h>

#include "as_good_as.h"
#include "ops/fold/fold_cuda.h"
#include "ops/gpu_rows_test_util.h"

namespace longstride::ops::cuda {

namespace {

using test::as_good_as, test::random_normal, test::relative_l2, test::rounded, test::same_bits;

std::size_t at(std::int64_t i) { return static_cast<std::size_t>(i); }

// Maps with places for all they have. Packed rows of a group stand side by side.
struct Layout {
  explicit Layout(std::int64_t alignment) : align(alignment) {}

  // Maps [in, out] for each of outs, behind one norm (gain: with a gain, shift: with a bias of it).
  void add(std::int64_t in, const std::vector<std::int64_t>& outs, bool bias, bool gain,
           bool shift) {
    const std::int64_t g = gain ? flat_place(in) : -1, c = shift ? flat_place(in) : -1;
    std::int64_t stride = 0;
    for (const auto out : outs) stride += out;
    const std::int64_t start = packed, start_bias = biases;
    packed += (in * stride + align - 1) / align * align;
    if (bias || shift) biases += (stride + align - 1) / align * align;
    std::int64_t column = 0;
    for (const auto out : outs) {
      FoldItem item{.in = in, .out = out, .weight = flat_place(in * out)};
      if (bias) item.bias = flat_place(out);
      item.gain = g;
      item.norm_bias = c;
      item.packed = start + column;
      item.packed_stride = stride;
      if (bias || shift) item.packed_bias = start_bias + column;
      item.first_of_norm = column == 0;
      items.push_back(item);
      column += out;
    }
  }
  std::int64_t flat_place(std::int64_t size) {
    const std::int64_t place = flat;
    flat += (size + align - 1) / align * align;
    return place;
  }

  std::int64_t align, flat = 0, packed = 0, biases = 0;
  std::vector<FoldItem> items;
};

// The formulas of fold_cuda.h in Real. What no map reaches stays NaN.
template <class Real>
struct Formula {
  Formula(const Layout& l, const std::vector<float>& flat_, const std::vector<float>& dpacked,
          const std::vector<float>& dbiases)
      : flat(flat_.begin(), flat_.end()),
        packed(test::poisoned<Real>(l.packed)),
        biases(test::poisoned<Real>(l.biases)),
        gradient(test::poisoned<Real>(l.flat)) {
    for (const FoldItem& item : l.items) {
      for (std::int64_t o = 0; item.packed_bias >= 0 && o < item.out; ++o) {
        Real b = item.bias >= 0 ? flat[at(item.bias + o)] : 0;
        for (std::int64_t i = 0; item.norm_bias >= 0 && i < item.in; ++i)
          b += flat[at(item.norm_bias + i)] * w(item, i, o);
        biases[at(item.packed_bias + o)] = b;
        if (item.bias >= 0)
          gradient[at(item.bias + o)] = static_cast<Real>(dbiases[at(item.packed_bias + o)]);
      }
      for (std::int64_t i = 0; i < item.in; ++i) row(item, i, dpacked, dbiases);
    }
  }

  Real w(const FoldItem& item, std::int64_t i, std::int64_t o) const {
    return flat[at(item.weight + i * item.out + o)];
  }

  void row(const FoldItem& item, std::int64_t i, const std::vector<float>& dpacked,
           const std::vector<float>& dbiases) {
    const Real g = item.gain >= 0 ? flat[at(item.gain + i)] : 1;
    const Real c = item.norm_bias >= 0 ? flat[at(item.norm_bias + i)] : 0;
    Real dg = 0, dc = 0;
    for (std::int64_t o = 0; o < item.out; ++o) {
      const std::int64_t place = item.packed + i * item.packed_stride + o;
      const auto dw = static_cast<Real>(dpacked[at(place)]);
      const Real db =
          item.packed_bias >= 0 ? static_cast<Real>(dbiases[at(item.packed_bias + o)]) : 0;
      packed[at(place)] = g * w(item, i, o);
      gradient[at(item.weight + i * item.out + o)] = g * dw + c * db;
      dg += w(item, i, o) * dw;
      dc += w(item, i, o) * db;
    }
    const auto put = [&](std::int64_t base, Real value) {
      if (base < 0) return;
      Real& into = gradient[at(base + i)];
      into = item.first_of_norm ? value : into + value;
    };
    put(item.gain, dg);
    put(item.norm_bias, dc);
  }

  std::vector<Real> flat, packed, biases, gradient;
};

// The values where want is a number; everywhere else got must still be poison.
template <class Got>
std::vector<Got> reached(const std::vector<Got>& got, const std::vector<double>& want) {
  std::vector<Got> result;
  for (std::size_t i = 0; i < want.size(); ++i)
    if (!std::isnan(want[i]))
      result.push_back(got[i]);
    else
      EXPECT_TRUE(std::isnan(got[i])) << i;
  return result;
}

class FoldGpu : public test::GpuTest {
 protected:
  template <class A>
  void matches(const Layout& l) {
    const auto flat = random_normal<float>(l.flat, 1), dpacked = random_normal<float>(l.packed, 2);
    const auto dbiases = random_normal<float>(l.biases, 3);
    const Formula<double> truth(l, flat, dpacked, dbiases);
    const Formula<float> plain(l, flat, dpacked, dbiases);
    const auto on_device = test::to_device(flat), d_packed = test::to_device(dpacked);
    const auto d_biases = test::to_device(dbiases);
    const auto packed = test::poisoned_device<A>(l.packed);
    const auto biases = test::poisoned_device<float>(l.biases);
    const auto gradient = test::poisoned_device<float>(l.flat);
    const Folds folds(l.items);
    folds.fold<A>(nullptr, on_device.vector(), packed.vector(), biases.vector());
    folds.unfold(nullptr, on_device.vector(), d_packed.vector(), d_biases.vector(),
                 gradient.vector());
    std::vector<float> folded;
    for (const A a : test::to_host(packed)) folded.push_back(static_cast<float>(a));
    const auto sums = test::to_host(biases), grads = test::to_host(gradient);

    EXPECT_TRUE(same_bits(reached(folded, truth.packed),
                          rounded<A, float>(reached(plain.packed, truth.packed))));
    const auto want_sums = reached(truth.biases, truth.biases);
    const auto got_sums = reached(sums, truth.biases);
    EXPECT_TRUE(as_good_as<float>(reached(plain.biases, truth.biases), got_sums, want_sums));
    EXPECT_LE(relative_l2(got_sums, want_sums), 2e-6);
    const auto want_grads = reached(truth.gradient, truth.gradient);
    const auto got_grads = reached(grads, truth.gradient);
    EXPECT_TRUE(as_good_as<float>(reached(plain.gradient, truth.gradient), got_grads, want_grads));
    EXPECT_LE(relative_l2(got_grads, want_grads), 2e-6);

    for (int repeat = 0; repeat < 250; ++repeat) {
      folds.fold<A>(nullptr, on_device.vector(), packed.vector(), biases.vector());
      folds.unfold(nullptr, on_device.vector(), d_packed.vector(), d_biases.vector(),
                   gradient.vector());
    }
    EXPECT_TRUE(same_bits(reached(test::to_host(biases), truth.biases), got_sums));
    EXPECT_TRUE(same_bits(reached(test::to_host(gradient), truth.gradient), got_grads));
  }

  static Layout block(std::int64_t alignment, std::int64_t d, std::int64_t qk, std::int64_t ff) {
    Layout l(alignment);
    l.add(d, {qk, qk, d}, true, true, true);
    l.add(d, {d}, true, false, false);
    l.add(d, {ff}, true, true, true);
    l.add(ff, {d}, true, false, false);
    l.add(d, {256}, false, true, true);
    return l;
  }
};

TEST_F(FoldGpu, BlockOfAModel) {
  matches<float>(block(16, 48, 32, 192));
  matches<bf16>(block(16, 48, 32, 192));
  matches<fp16>(block(16, 512, 256, 1040));
}

TEST_F(FoldGpu, OddShapesAndPlaces) {
  matches<float>(block(1, 7, 5, 33));
  matches<bf16>(block(3, 13, 6, 50));
  Layout l(16);
  l.add(600, {68, 4, 129}, true, true, true);  // more rows than a task, a map of no whole packs
  l.add(1030, {20}, false, false, false);      // nothing but a copy
  l.add(9, {70}, false, true, false);          // a gain without a bias
  l.add(9, {70, 2}, true, false, true);        // a bias without a gain
  matches<float>(l);
  matches<bf16>(l);
}

// Maps of one norm in two parts: the second adds to the gradients that the first left.
TEST_F(FoldGpu, LaterMapsOfANormAdd) {
  Layout l(16);
  l.add(40, {24, 16}, true, true, true);
  const auto flat = random_normal<float>(l.flat, 1), dpacked = random_normal<float>(l.packed, 2);
  const auto dbiases = random_normal<float>(l.biases, 3);
  const Formula<double> truth(l, flat, dpacked, dbiases);
  const auto on_device = test::to_device(flat), d_packed = test::to_device(dpacked);
  const auto d_biases = test::to_device(dbiases);
  const auto gradient = test::poisoned_device<float>(l.flat);
  for (const FoldItem& item : l.items)
    Folds({item}).unfold(nullptr, on_device.vector(), d_packed.vector(), d_biases.vector(),
                         gradient.vector());
  EXPECT_LE(relative_l2(reached(test::to_host(gradient), truth.gradient),
                        reached(truth.gradient, truth.gradient)),
            2e-6);
}

TEST_F(FoldGpu, BeyondTwoToThe31) {
  constexpr std::int64_t kFar = (std::int64_t{1} << 31) + 64;
  if (!test::device_has(6 * kFar)) GTEST_SKIP() << "the card is too small";
  Layout l(16), far(16);
  l.add(24, {16}, true, true, true);
  far.packed = kFar;
  far.add(24, {16}, true, true, true);
  const auto flat = test::to_device(random_normal<float>(l.flat, 1));
  const device::DeviceBuffer<bf16> near_packed(l.packed), far_packed(far.packed);
  const device::DeviceBuffer<float> biases(l.biases);
  Folds(l.items).fold<bf16>(nullptr, flat.vector(), near_packed.vector(), biases.vector());
  Folds(far.items).fold<bf16>(nullptr, flat.vector(), far_packed.vector(), biases.vector());
  const device::DeviceBuffer<bf16> back(l.packed);
  device::copy(nullptr, back.data(), far_packed.data() + kFar, back.bytes());
  const auto want = test::to_host(near_packed), got = test::to_host(back);
  for (std::size_t i = 0; i < want.size(); ++i) EXPECT_EQ(got[i].bits, want[i].bits) << i;
}

TEST_F(FoldGpu, RejectsWrongItems) {
  FoldItem item{.in = 4, .out = 8, .weight = 0, .bias = 32, .packed = 0, .packed_stride = 8};
  EXPECT_EQ(test::error_of([&] { Folds({item}); }),
            "fold: the map at 0 has a bias but no place for it, want a packed_bias");
  item.packed_bias = 0;
  item.packed_stride = 7;
  EXPECT_EQ(test::error_of([&] { Folds({item}); }),
            "fold: a map 4x8 at 0 to 0 with a row stride of 7, want positive sizes, places and a "
            "stride of at least 8");
}

}  // namespace

}  // namespace longstride::ops::cuda
