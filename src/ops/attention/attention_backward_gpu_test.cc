// Attention backward on a GPU against the formula in float64. What it is given as the forward's
// result is that of float64, rounded.
#include <gtest/gtest.h>

#include <cstring>
#include <type_traits>

#include "device/gpu_test_util.h"
#include "ops/attention/attention_cuda.h"
#include "ops/attention/attention_test_util.h"
#include "tensor/fp16.h"

namespace longstride::ops::cuda {

namespace {

using test::Problem;
using test::Result;
using test::Shape;

using AttentionBackwardGpu = test::GpuTest;

template <class A>
double rounded(double x) {
  return static_cast<double>(static_cast<float>(A(static_cast<float>(x))));
}

template <class A>
constexpr const char* kName = std::is_same_v<A, float>  ? "float"
                              : std::is_same_v<A, bf16> ? "bf16"
                                                        : "fp16";

// A unit in the last place of 1; what numeric_limits says of a real type.
template <class A>
constexpr double kEpsilon = std::is_same_v<A, float>  ? 0x1p-23
                            : std::is_same_v<A, bf16> ? 0x1p-7
                                                      : 0x1p-10;

// How the rows of the tensors lie.
enum class Rows {
  packed,  // [q | k | v], gradients likewise, as a layer has them; pieces of 16 bytes stay whole
  gaps     // rows and addresses at odd places
};

// A head view inside an array on the device, and its values packed as test::Strided packs them.
template <class A>
struct View {
  Heads<A> heads;
  std::size_t at = 0;  // in the array
};

template <class A>
View<A> view_of(const device::DeviceBuffer<A>& array, std::size_t at, const Shape& shape,
                std::int64_t width, std::int64_t row_stride) {
  return {{array.data() + at, shape.batch, shape.length, shape.heads, width, row_stride}, at};
}

template <class A>
std::size_t index_of(const View<A>& view, std::int64_t b, std::int64_t i, std::int64_t h) {
  const auto& x = view.heads;
  return view.at + static_cast<std::size_t>((b * x.length + i) * x.row_stride + h * x.width);
}

template <class A, class Do>
void for_each_element(const View<A>& view, const Do& act) {
  const auto& x = view.heads;
  std::size_t n = 0;
  for (std::int64_t b = 0; b < x.batch; ++b)
    for (std::int64_t i = 0; i < x.length; ++i)
      for (std::int64_t h = 0; h < x.heads; ++h)
        for (std::int64_t c = 0; c < x.width; ++c)
          act(n++, index_of(view, b, i, h) + static_cast<std::size_t>(c));
}

struct Gradients {
  std::vector<double> dq, dk, dv;
};

// Runs the operation on device memory that is a NaN wherever nobody has to read or write.
template <class A>
class Device {
 public:
  Device(const AttentionPlan& plan, const Problem<double>& problem, const Result<double>& forward,
         Rows rows)
      : shape_(problem.shape), plan_(plan) {
    const auto H = shape_.heads, qk = H * shape_.qk_width, v = H * shape_.v_width;
    const std::int64_t gap = rows == Rows::gaps ? 3 : 0;
    const std::size_t first = rows == Rows::gaps ? 1 : 0;
    const std::int64_t stride = 2 * qk + v + gap, out_stride = v + gap;
    const std::int64_t count = shape_.batch * shape_.length + 1;
    inputs_ = device::DeviceBuffer<A>(count * stride);
    outs_ = device::DeviceBuffer<A>(2 * count * out_stride);
    gradients_ = test::poisoned_device<A>(count * stride);
    const auto in = [&](const auto& array, std::int64_t at, std::int64_t width) {
      return view_of(array, first + static_cast<std::size_t>(at), shape_, width, stride);
    };
    q_ = in(inputs_, 0, shape_.qk_width), k_ = in(inputs_, qk, shape_.qk_width);
    v_ = in(inputs_, 2 * qk, shape_.v_width);
    out_ = view_of(outs_, first, shape_, shape_.v_width, out_stride);
    dout_ = view_of(outs_, first + static_cast<std::size_t>(count * out_stride), shape_,
                    shape_.v_width, out_stride);
    dq_ = in(gradients_, 0, shape_.qk_width), dk_ = in(gradients_, qk, shape_.qk_width);
    dv_ = in(gradients_, 2 * qk, shape_.v_width);
    const A poison(std::numeric_limits<float>::quiet_NaN());
    std::vector<A> inputs(static_cast<std::size_t>(inputs_.size()), poison),
        outs(static_cast<std::size_t>(outs_.size()), poison);
    const auto fill = [](std::vector<A>& array, const View<A>& view,
                         const std::vector<double>& values) {
      for_each_element(view, [&](std::size_t n, std::size_t at) {
        array[at] = A(static_cast<float>(values[n]));
      });
    };
    fill(inputs, q_, problem.q.packed()), fill(inputs, k_, problem.k.packed());
    fill(inputs, v_, problem.v.packed());
    fill(outs, out_, forward.out), fill(outs, dout_, problem.dout.packed());
    inputs_ = test::to_device(inputs);
    outs_ = test::to_device(outs);
    for (auto* x : {&q_, &k_, &v_}) x->heads.data = inputs_.data() + x->at;
    for (auto* x : {&out_, &dout_}) x->heads.data = outs_.data() + x->at;
    lse_ = test::to_device(std::vector<float>(forward.lse.begin(), forward.lse.end()));
    op_ = {&plan_,        q_.heads,   k_.heads,
           v_.heads,      out_.heads, dout_.heads,
           lse_.vector(), dq_.heads,  dk_.heads,
           dv_.heads,     {},         static_cast<float>(problem.scale)};
    scratch_ = test::poisoned_device<float>(attention_backward_scratch(op_));
    op_.scratch = scratch_.vector();
  }

  std::vector<A> bits() {
    attention_backward(nullptr, op_);
    return test::to_host(gradients_);
  }

  Gradients operator()() {
    const std::vector<A> array = bits();
    Gradients got;
    std::vector<bool> written(array.size());
    const auto take = [&](const View<A>& view, std::vector<double>& to) {
      for_each_element(view, [&](std::size_t, std::size_t at) {
        to.push_back(static_cast<double>(static_cast<float>(array[at])));
        written[at] = true;
      });
    };
    take(dq_, got.dq), take(dk_, got.dk), take(dv_, got.dv);
    std::size_t disturbed = 0;
    for (std::size_t n = 0; n < array.size(); ++n)
      disturbed += !written[n] && !std::isnan(static_cast<float>(array[n]));
    EXPECT_EQ(disturbed, 0u) << "memory beside the rows was written";
    return got;
  }

 private:
  Shape shape_;
  DevicePlan plan_;
  device::DeviceBuffer<A> inputs_, outs_, gradients_;
  View<A> q_, k_, v_, out_, dout_, dq_, dk_, dv_;
  device::DeviceBuffer<float> lse_, scratch_;
  AttentionBackward<A> op_;
};

// The formula pair by pair in float, with P, dS and the results rounded to A.
template <class A>
Gradients plain(const Problem<double>& problem, const Result<double>& forward) {
  const Shape& shape = problem.shape;
  const auto row = [&](const auto& x, std::int64_t b, std::int64_t i, std::int64_t h) {
    return x.heads.at(b, i, h);
  };
  const auto at = [&](std::int64_t width, std::int64_t b, std::int64_t i, std::int64_t h) {
    return static_cast<std::size_t>(((b * shape.length + i) * shape.heads + h) * width);
  };
  const auto size = static_cast<std::size_t>(shape.batch * shape.length * shape.heads);
  const std::int64_t qk = shape.qk_width, vw = shape.v_width;
  std::vector<float> dq(size * static_cast<std::size_t>(qk)), dk(dq.size()),
      dv(size * static_cast<std::size_t>(vw));
  const auto dot = [](const double* a, const double* b, std::int64_t width) {
    float sum = 0;
    for (std::int64_t c = 0; c < width; ++c)
      sum += static_cast<float>(a[c]) * static_cast<float>(b[c]);
    return sum;
  };
  const auto scale = static_cast<float>(problem.scale);
  for (std::int64_t b = 0; b < shape.batch; ++b)
    for (std::int64_t h = 0; h < shape.heads; ++h)
      for (std::int64_t i = 0; i < shape.length; ++i) {
        const double* const out = forward.out.data() + at(vw, b, i, h);
        const double *const q = row(problem.q, b, i, h), *const dout = row(problem.dout, b, i, h);
        const auto lse = static_cast<float>(
            forward.lse[static_cast<std::size_t>((b * shape.heads + h) * shape.length + i)]);
        const float mean = dot(dout, out, vw);
        for (const Position j : ref::attended(*problem.plan, h, i)) {
          const double *const k = row(problem.k, b, j, h), *const v = row(problem.v, b, j, h);
          const float exact = std::exp(scale * dot(q, k, qk) - lse);
          const auto p = static_cast<float>(rounded<A>(exact));
          const auto ds = static_cast<float>(rounded<A>(exact * (dot(dout, v, vw) - mean)));
          for (std::int64_t c = 0; c < vw; ++c)
            dv[at(vw, b, j, h) + static_cast<std::size_t>(c)] += p * static_cast<float>(dout[c]);
          for (std::int64_t c = 0; c < qk; ++c) {
            const auto n = static_cast<std::size_t>(c);
            dq[at(qk, b, i, h) + n] += scale * ds * static_cast<float>(k[c]);
            dk[at(qk, b, j, h) + n] += scale * ds * static_cast<float>(q[c]);
          }
        }
      }
  Gradients result;
  const auto round_all = [](const std::vector<float>& from, std::vector<double>& to) {
    for (const float x : from) to.push_back(rounded<A>(x));
  };
  round_all(dq, result.dq), round_all(dk, result.dk), round_all(dv, result.dv);
  return result;
}

// `unit`: a gradient that does not cancel. Where a row sees one key, dS is the difference of two
// equal sums, and dQ and dK are rounding errors of them.
template <class A>
void expect_close(const char* what, const std::vector<double>& got,
                  const std::vector<double>& bound, const std::vector<double>& truth,
                  const std::vector<double>& unit) {
  const auto norm = [](const std::vector<double>& x) {
    return test::relative_l2(x, std::vector<double>(x.size()));
  };
  const double error = test::relative_l2(got, truth) * (norm(truth) > 0 ? norm(truth) : 1);
  const double size = std::max(norm(truth), norm(unit));
  if constexpr (std::is_same_v<A, float>) {
    EXPECT_LE(error, 2e-6 * size) << what;
  } else {
    const double allowed = test::relative_l2(bound, truth) * (norm(truth) > 0 ? norm(truth) : 1);
    EXPECT_LE(error, 2 * allowed + 1e-6 * size) << what;
    const auto largest = [](const std::vector<double>& x) {
      return test::worst(x, std::vector<double>(x.size())).error;
    };
    const test::Worst worst = test::worst(got, truth);
    EXPECT_LE(worst.error, 2 * test::worst(bound, truth).error + 4 * kEpsilon<A> * largest(truth) +
                               1e-6 * largest(unit))
        << what << " at " << worst.at << ": got " << got[worst.at] << ", want " << truth[worst.at];
  }
}

// A problem whose inputs are values of A, its float64 forward with `out` rounded, and gradients.
template <class A>
struct Case {
  Case(const AttentionPlan& plan, const Shape& shape, std::uint64_t seed, double sharpness = 1)
      : problem(plan, shape, seed, sharpness) {
    for (auto* x : {&problem.q, &problem.k, &problem.v, &problem.dout})
      for (double& value : x->data) value = rounded<A>(value);
    truth = problem.run();
    given = truth;
    for (double& value : given.out) value = rounded<A>(value);
  }
  Problem<double> problem;
  Result<double> truth, given;
};

template <class A>
void expect_formula(const AttentionPlan& plan, const Shape& shape, std::uint64_t seed,
                    Rows rows = Rows::packed, double sharpness = 1) {
  SCOPED_TRACE(test::name_of(plan));
  SCOPED_TRACE(testing::Message() << kName<A> << " B " << shape.batch << " N " << shape.length
                                  << " H " << shape.heads << " d " << shape.qk_width << ", "
                                  << shape.v_width << (rows == Rows::gaps ? ", gaps" : ""));
  const Case<A> c(plan, shape, seed, sharpness);
  const Gradients got = Device<A>(plan, c.problem, c.given, rows)();
  Gradients bound;
  if constexpr (!std::is_same_v<A, float>) bound = plain<A>(c.problem, c.given);
  expect_close<A>("dq", got.dq, bound.dq, c.truth.dq, c.truth.dv);
  expect_close<A>("dk", got.dk, bound.dk, c.truth.dk, c.truth.dv);
  expect_close<A>("dv", got.dv, bound.dv, c.truth.dv, c.truth.dv);
}

template <class Test>
void for_each_type(const Test& test) {
  test.template operator()<bf16>();
  test.template operator()<fp16>();
  test.template operator()<float>();
}

TEST_F(AttentionBackwardGpu, MatchesTheFormulaForEachPart) {
  for_each_type([]<class A>() {
    std::uint64_t seed = 1;
    for (const std::string& spec : test::typical_specs())
      expect_formula<A>(test::plan_of(spec, 2, 140), {2, 133, 2, 16, 24}, ++seed);
  });
}

// Few and short, but all kernels: for tools under which they take a hundred times as long.
TEST_F(AttentionBackwardGpu, Small) {
  std::uint64_t seed = 0;
  for (const std::string& spec : test::typical_specs()) {
    const AttentionPlan plan = test::plan_of(spec, 2, 77);
    const Shape shape{1, 70, 2, 16, 24};
    if (++seed % 3 == 0) expect_formula<float>(plan, shape, seed);
    if (seed % 3 == 1) expect_formula<bf16>(plan, shape, seed);
    if (seed % 3 == 2) expect_formula<fp16>(plan, shape, seed, Rows::gaps);
  }
  for (const auto& [qk, v] : {std::pair(32, 32), {64, 64}, {64, 128}, {128, 128}})
    for (const std::string spec : {"fixed(32, 8)", "local(40)", "row(32), column(9)"})
      expect_formula<bf16>(test::plan_of(spec, 2, 150), {1, 140, 2, qk, v}, ++seed);
}

TEST_F(AttentionBackwardGpu, MatchesTheFormulaForAnyWidth) {
  for_each_type([]<class A>() {
    std::uint64_t seed = 1;
    for (const auto& [qk, v] : {std::pair(1, 1),
                                {8, 3},
                                {17, 32},
                                {32, 32},
                                {33, 64},
                                {64, 64},
                                {64, 65},
                                {24, 128},
                                {64, 128},
                                {65, 8},
                                {96, 96},
                                {128, 128},
                                {128, 136},
                                {129, 50},
                                {200, 256},
                                {256, 256}})
      for (const Rows rows : {Rows::packed, Rows::gaps})
        expect_formula<A>(test::plan_of("strided(11), fixed(9, 2), dense", 3, 170),
                          {1, 165, 3, qk, v}, ++seed, rows);
  });
}

TEST_F(AttentionBackwardGpu, MatchesTheFormulaForAnyLength) {
  for_each_type([]<class A>() {
    for (const std::int64_t length : {1, 2, 15, 16, 17, 31, 33, 63, 64, 65, 127, 128, 129, 257})
      expect_formula<A>(
          test::plan_of("dense, local(30), column(4), row(32), fixed(32, 8), local(3) + global(20)",
                        6, length + length % 3),
          {1, length, 6, 64, 64}, static_cast<std::uint64_t>(length));
  });
}

TEST_F(AttentionBackwardGpu, MatchesTheFormulaForRandomUnions) {
  for_each_type([]<class A>() {
    test::Dice dice(5);
    for (std::uint64_t seed = 0; seed < 120; ++seed) {
      const std::int64_t length = dice.in(1, 300), heads = dice.in(1, 3);
      std::vector<HeadPattern> kinds;
      for (std::int64_t h = 0; h < heads; ++h) kinds.push_back(test::random_head(dice));
      const AttentionPlan plan(kinds, length + dice.in(0, 40));
      expect_formula<A>(plan, {dice.in(1, 2), length, heads, dice.in(1, 40), dice.in(1, 40)}, seed,
                        seed % 2 == 0 ? Rows::packed : Rows::gaps);
    }
  });
}

// Several key tiles a lane, so that dQ is summed over blocks; several lanes; splits.
TEST_F(AttentionBackwardGpu, MatchesTheFormulaOverManyTiles) {
  for_each_type([]<class A>() {
    for (const std::string spec : {"dense",
                                   "local(300)",
                                   "local(64)",
                                   "column(2)",
                                   "row(500)",
                                   "row(96)",
                                   "row(128)",
                                   "summary(10, 7, 0)",
                                   "summary(64, 16, 1)",
                                   "previous_row(250)",
                                   "previous_row(40)",
                                   "global(200)",
                                   "global(9)",
                                   "random(9, 1)",
                                   "random(2, 1, 300)",
                                   "strided(128)",
                                   "fixed(128, 32)",
                                   "row(100) + previous_row(100) + column(100)",
                                   "column(3) + local(90)",
                                   "random(3, 1, 64) + local(200) + column(5)"})
      expect_formula<A>(test::plan_of(spec, spec[0] == 'f' ? 4 : 1, 1010),
                        {1, 1003, spec[0] == 'f' ? 4 : 1, 32, 48}, 3, Rows::packed, 2);
  });
}

TEST_F(AttentionBackwardGpu, ManyHeadsAndBatches) {
  expect_formula<bf16>(test::plan_of("local(70), column(9)", 150, 150), {3, 150, 150, 8, 8}, 7);
}

TEST_F(AttentionBackwardGpu, RowsWithoutKeysHaveNoGradient) {
  for_each_type([]<class A>() {
    const AttentionPlan plan = test::plan_of("summary(10, 3, 0)", 1, 25);
    const Case<A> c(plan, {1, 25, 1, 8, 8}, 1);
    const Gradients got = Device<A>(plan, c.problem, c.given, Rows::packed)();
    for (std::size_t n = 0; n < 10 * 8; ++n) EXPECT_EQ(got.dq[n], 0);
    for (std::size_t n = 20 * 8; n < 25 * 8; ++n) EXPECT_EQ(got.dk[n], 0);
    for (std::size_t n = 20 * 8; n < 25 * 8; ++n) EXPECT_EQ(got.dv[n], 0);
  });
}

TEST_F(AttentionBackwardGpu, RepeatsHaveTheSameBits) {
  for_each_type([]<class A>() {
    const AttentionPlan plan =
        test::plan_of("dense, local(200), fixed(128, 32), strided(7), global(10)", 10, 900);
    const Case<A> c(plan, {1, 900, 10, 32, 32}, 2);
    Device<A> run(plan, c.problem, c.given, Rows::packed);
    const std::vector<A> first = run.bits();
    for (int n = 0; n < 250; ++n) {
      const std::vector<A> again = run.bits();
      ASSERT_EQ(std::memcmp(first.data(), again.data(), first.size() * sizeof(A)), 0) << n;
    }
  });
}

// Rows so far apart that offsets pass 2^31 elements: the last rows are as right as the first ones.
TEST_F(AttentionBackwardGpu, OffsetsPassTwoToThe31) {
  constexpr std::int64_t kLength = 4200, kStride = std::int64_t{1} << 19, kWidth = 16;
  static_assert(kLength * kStride > std::int64_t{1} << 31);
  const AttentionPlan plan = test::plan_of("strided(60)", 1, kLength);
  const Shape shape{1, kLength, 1, kWidth, kWidth};
  const Case<bf16> c(plan, shape, 1);
  const DevicePlan device_plan(plan);
  device::DeviceBuffer<bf16> array(kLength * kStride + 8 * kWidth);
  Heads<bf16> views[8];  // q, k, v, out, dout, dq, dk, dv
  for (std::int64_t n = 0; n < 8; ++n)
    views[n] = {array.data() + n * kWidth, 1, kLength, 1, kWidth, kStride};
  const std::vector<double> inputs[] = {c.problem.q.packed(), c.problem.k.packed(),
                                        c.problem.v.packed(), c.given.out, c.problem.dout.packed()};
  constexpr std::size_t kRowBytes = kWidth * sizeof(bf16), kPitch = kStride * sizeof(bf16);
  for (std::size_t n = 0; n < 5; ++n) {
    std::vector<bf16> values;
    for (const double x : inputs[n]) values.push_back(bf16(static_cast<float>(x)));
    device::check(cudaMemcpy2D(views[n].data, kPitch, values.data(), kRowBytes, kRowBytes, kLength,
                               cudaMemcpyHostToDevice),
                  "test");
  }
  const auto lse = test::to_device(std::vector<float>(c.given.lse.begin(), c.given.lse.end()));
  AttentionBackward<bf16> op = {
      &device_plan, views[0], views[1], views[2], views[3], views[4],
      lse.vector(), views[5], views[6], views[7], {},       static_cast<float>(c.problem.scale)};
  const auto scratch = test::poisoned_device<float>(attention_backward_scratch(op));
  op.scratch = scratch.vector();
  attention_backward(nullptr, op);
  device::check(cudaDeviceSynchronize(), "test");
  const Gradients bound = plain<bf16>(c.problem, c.given);
  const std::tuple<const char*, const std::vector<double>*, const std::vector<double>*> wanted[] = {
      {"dq", &bound.dq, &c.truth.dq},
      {"dk", &bound.dk, &c.truth.dk},
      {"dv", &bound.dv, &c.truth.dv}};
  for (std::size_t n = 0; n < 3; ++n) {
    std::vector<bf16> values(kLength * kWidth);
    device::check(cudaMemcpy2D(values.data(), kRowBytes, views[5 + n].data, kPitch, kRowBytes,
                               kLength, cudaMemcpyDeviceToHost),
                  "test");
    std::vector<double> got;
    for (const bf16 x : values) got.push_back(static_cast<double>(static_cast<float>(x)));
    expect_close<bf16>(std::get<0>(wanted[n]), got, *std::get<1>(wanted[n]),
                       *std::get<2>(wanted[n]), c.truth.dv);
  }
}

TEST_F(AttentionBackwardGpu, RefusesWhatDoesNotFit) {
  const AttentionPlan plan = test::plan_of("dense", 2, 20);
  const DevicePlan device_plan(plan);
  const device::DeviceBuffer<bf16> array(20 * 16);
  const Heads<bf16> x = {array.data(), 1, 20, 2, 8, 16};
  AttentionBackward<bf16> op;
  const auto refused = [&](const char* why) {
    try {
      attention_backward(nullptr, op);
      ADD_FAILURE() << "not refused: " << why;
    } catch (const Error& error) {
      EXPECT_NE(std::string(error.what()).find(why), std::string::npos) << error.what();
    }
  };
  refused("no plan");
  const device::DeviceBuffer<float> lse(40);
  op = {&device_plan, x, x, x, x, x, lse.vector(), x, x, x, {}, 1};
  refused("scratch of 0 floats");
  op.k.width = 4;
  refused("shapes differ");
  op.k.width = 8;
  op.q.length = 21;
  refused("length 21");
}

}  // namespace

}  // namespace longstride::ops::cuda
