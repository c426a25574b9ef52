// What the Hopper kernels take and what they leave, and that both ways agree with the formula where
// several kinds of heads, of which only some have summaries, share a layer.
#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "device/gpu_test_util.h"
#include "ops/attention/attention_sm90.h"
#include "ops/attention/attention_test_util.h"
#include "ops/attention/device_plan_cuda.h"

namespace longstride::ops::cuda {

namespace {

using test::Shape;

class AttentionSm90Gpu : public test::GpuTest {
 protected:
  void SetUp() override {
    test::GpuTest::SetUp();
    if (!IsSkipped() && !device::is_hopper())
      GTEST_SKIP() << "no Hopper device, or LONGSTRIDE_CUDA_PORTABLE is set";
  }
};

// A layer in memory as [q | k | v] and [dq | dk | dv], poisoned where nobody has to write.
template <class A>
struct Layer {
  Layer(const std::string& spec, const Shape& of, std::int64_t gap = 0)
      : shape(of), plan(test::plan_of(spec, of.heads, of.length)), device_plan(plan) {
    const std::int64_t positions = shape.batch * shape.length;
    const std::int64_t qk = shape.heads * shape.qk_width, v = shape.heads * shape.v_width;
    stride = 2 * qk + v + gap;
    values = test::random_normal<float>(positions * (stride + v), 5);
    std::vector<A> rounded;
    for (float& x : values) {
      rounded.push_back(A(x));
      x = static_cast<float>(rounded.back());
    }
    inputs = test::to_device(rounded);
    gradients = test::poisoned_device<A>(positions * stride);
    out = test::poisoned_device<A>(positions * v);
    lse = test::poisoned_device<float>(positions * shape.heads);
    const State& state = device_plan.state();
    line = {&state.tables.parts, &state.tables.groups.back().heads, state.parts.data(),
            state.heads.back().data()};
  }
  using State = DevicePlan::State;

  template <class T>
  Heads<T> part(T* rows, std::int64_t column, std::int64_t width) const {
    return {rows + column, shape.batch, shape.length, shape.heads, width, stride};
  }
  Attention<A> forward() {
    const std::int64_t qk = shape.heads * shape.qk_width, v = shape.heads * shape.v_width;
    const A* const rows = inputs.data();
    return {&device_plan,
            part(rows, 0, shape.qk_width),
            part(rows, qk, shape.qk_width),
            part(rows, 2 * qk, shape.v_width),
            {out.data(), shape.batch, shape.length, shape.heads, shape.v_width, v},
            lse.vector(),
            scale()};
  }
  AttentionBackward<A> backward() {
    const Attention<A> f = forward();
    const std::int64_t qk = shape.heads * shape.qk_width, v = shape.heads * shape.v_width;
    const A* const dout = inputs.data() + shape.batch * shape.length * stride;
    return {&device_plan,
            f.q,
            f.k,
            f.v,
            f.out,
            {dout, shape.batch, shape.length, shape.heads, shape.v_width, v},
            f.lse,
            part(gradients.data(), 0, shape.qk_width),
            part(gradients.data(), qk, shape.qk_width),
            part(gradients.data(), 2 * qk, shape.v_width),
            {},
            scale()};
  }
  float scale() const {
    return static_cast<float>(1 / std::sqrt(static_cast<double>(shape.qk_width)));
  }

  Shape shape;
  AttentionPlan plan;
  DevicePlan device_plan;
  std::int64_t stride = 0;
  std::vector<float> values;
  device::DeviceBuffer<A> inputs, gradients, out;
  device::DeviceBuffer<float> lse;
  sm90::Line line;
};

bool taken(const std::string& spec, const Shape& shape, std::int64_t gap = 0) {
  Layer<bf16> layer(spec, shape, gap);
  return sm90::takes(layer.forward(), layer.line);
}
bool taken_back(const std::string& spec, const Shape& shape) {
  Layer<bf16> layer(spec, shape);
  return sm90::takes(layer.backward(), layer.line);
}

TEST_F(AttentionSm90Gpu, TakesThePatternsOfThePresets) {
  for (const char* spec : {"dense", "local(96)", "local(128)", "row(128)", "fixed(128, 32)",
                           "summary(128, 32, 0)", "previous_row(128)", "fixed(128, 8)"})
    for (const Shape& shape : {Shape{2, 300, 2, 64, 64}, Shape{1, 300, 2, 32, 32},
                               Shape{1, 300, 2, 128, 128}, Shape{1, 300, 2, 64, 128}}) {
      EXPECT_TRUE(taken(spec, shape)) << spec;
      EXPECT_TRUE(taken_back(spec, shape)) << spec;
    }
}

TEST_F(AttentionSm90Gpu, LeavesTheRest) {
  const Shape shape{1, 300, 2, 64, 64};
  EXPECT_FALSE(taken("random(2, 7, 8)", shape)) << "a list";
  EXPECT_FALSE(taken("local(13) + random(2, 3, 8)", shape)) << "a mask";
  EXPECT_FALSE(taken("fixed(200, 150)", shape)) << "summaries that fill no whole tiles";
  EXPECT_FALSE(taken("dense", {1, 300, 2, 136, 64})) << "wide heads";
  EXPECT_FALSE(taken("dense", {1, 300, 2, 64, 132})) << "wide values";
  EXPECT_FALSE(taken("dense", {1, 300, 2, 60, 64})) << "widths in half pieces";
  EXPECT_FALSE(taken("dense", shape, 3)) << "rows in half pieces";
  EXPECT_FALSE(taken_back("local(16) + summary(32, 8, 0)", shape)) << "keys of two parts";
  Layer<bf16> layer("dense", shape);
  Attention<bf16> op = layer.forward();
  op.scale = 0;
  EXPECT_FALSE(sm90::takes(op, layer.line))
      << "the largest score is not that of the largest product";
  op = layer.forward();
  op.q.data += 4;
  EXPECT_FALSE(sm90::takes(op, layer.line)) << "an address at half a piece";
}

template <class A>
void expect_close(const char* what, const Heads<const double>& want, const std::vector<A>& rows,
                  std::int64_t column, std::int64_t stride) {
  double difference = 0, norm = 0;
  for (std::int64_t n = 0; n < want.batch * want.length; ++n)
    for (std::int64_t c = 0; c < want.heads * want.width; ++c) {
      const double truth = want.at(0, n, 0)[c];
      const double error = static_cast<double>(static_cast<float>(
                               rows[static_cast<std::size_t>(n * stride + column + c)])) -
                           truth;
      difference += error * error;
      norm += truth * truth;
    }
  // P, dS and the result are rounded to A, each by half of 2^-8 or 2^-11 at most.
  const double bound = std::is_same_v<A, bf16> ? 4e-3 : 6e-4;
  // A gradient that is zero but for rounding (one key alone) is held to the size of its terms.
  const double count = static_cast<double>(want.batch * want.length * want.heads * want.width);
  EXPECT_LE(std::sqrt(difference), bound * std::sqrt(norm) + 1e-5 * std::sqrt(count)) << what;
}

template <class A>
void expect_right(const std::string& spec, const Shape& shape) {
  SCOPED_TRACE(spec);
  Layer<A> layer(spec, shape, 8);
  const Attention<A> forward = layer.forward();
  AttentionBackward<A> backward = layer.backward();
  ASSERT_TRUE(sm90::takes(forward, layer.line));
  ASSERT_TRUE(sm90::takes(backward, layer.line));
  auto scratch = test::poisoned_device<float>(sm90::backward_scratch(backward));
  backward.scratch = scratch.vector();
  sm90::attention(nullptr, forward, layer.line);
  sm90::attention_backward(nullptr, backward, layer.line);

  const std::vector<double> inputs(layer.values.begin(), layer.values.end());
  const std::int64_t positions = shape.batch * shape.length, stride = layer.stride;
  const std::int64_t qk = shape.heads * shape.qk_width, v = shape.heads * shape.v_width;
  std::vector<double> out(static_cast<std::size_t>(positions * v)),
      lse(static_cast<std::size_t>(positions * shape.heads)),
      gradients(static_cast<std::size_t>(positions * stride));
  const ops::Attention<double> truth = {
      &layer.plan,
      layer.part(inputs.data(), 0, shape.qk_width),
      layer.part(inputs.data(), qk, shape.qk_width),
      layer.part(inputs.data(), 2 * qk, shape.v_width),
      {out.data(), shape.batch, shape.length, shape.heads, shape.v_width, v},
      test::view(lse),
      static_cast<double>(layer.scale())};
  ops::attention(truth);
  const ops::AttentionBackward<double> back = {&layer.plan,
                                               truth.q,
                                               truth.k,
                                               truth.v,
                                               truth.out,
                                               {inputs.data() + positions * stride, shape.batch,
                                                shape.length, shape.heads, shape.v_width, v},
                                               {lse.data(), positions * shape.heads},
                                               layer.part(gradients.data(), 0, shape.qk_width),
                                               layer.part(gradients.data(), qk, shape.qk_width),
                                               layer.part(gradients.data(), 2 * qk, shape.v_width),
                                               truth.scale};
  ops::attention_backward(back);

  const std::vector<A> got = test::to_host(layer.gradients);
  expect_close<A>("out", truth.out, test::to_host(layer.out), 0, v);
  expect_close<A>("dq", back.dq, got, 0, stride);
  expect_close<A>("dk", back.dk, got, qk, stride);
  expect_close<A>("dv", back.dv, got, 2 * qk, stride);
  for (std::int64_t n = 0; n < positions; ++n)
    for (std::int64_t c = 2 * qk + v; c < stride; ++c)
      ASSERT_TRUE(std::isnan(static_cast<float>(got[static_cast<std::size_t>(n * stride + c)])))
          << "memory beside the rows was written";
  for (int repeat = 0; repeat < 250; ++repeat) {
    sm90::attention(nullptr, forward, layer.line);
    sm90::attention_backward(nullptr, backward, layer.line);
  }
  EXPECT_TRUE(std::equal(got.begin(), got.end(), test::to_host(layer.gradients).begin(),
                         [](A a, A b) { return a.bits == b.bits; }));
}

TEST_F(AttentionSm90Gpu, IsRightForEveryPart) {
  const Shape odd{2, 517, 2, 64, 64};
  for (const char* spec :
       {"dense", "local(128)", "local(1)", "row(96)", "summary(128, 32, 1)", "previous_row(100)",
        "global(9)", "fixed(128, 32)", "fixed(96, 24)", "fixed(300, 256)", "local(10) + global(5)"})
    expect_right<bf16>(spec, odd);
}

TEST_F(AttentionSm90Gpu, IsRightForAllWidths) {
  for (const Shape& shape : {Shape{1, 700, 2, 128, 128}, Shape{1, 700, 2, 64, 128},
                             Shape{1, 700, 4, 32, 32}, Shape{1, 700, 2, 96, 40}}) {
    expect_right<bf16>("fixed(128, 32)", shape);
    expect_right<fp16>("fixed(128, 32)", shape);
    expect_right<fp16>("dense", shape);
  }
}

TEST_F(AttentionSm90Gpu, IsRightForMixedHeads) {
  expect_right<bf16>("fixed(128, 32), local(33), row(16), summary(300, 256, 0)",
                     {2, 901, 4, 64, 64});
  expect_right<bf16>("fixed(64, 16)", {1, 650, 8, 64, 64});
  expect_right<fp16>("dense, global(70), previous_row(50), summary(48, 5)", {3, 450, 4, 64, 128});
}

// What attention_sm90_short.h takes: every window and row, heads in pairs and padded, wide values.
TEST_F(AttentionSm90Gpu, IsRightForShortPatterns) {
  for (const char* spec : {"local(1)", "local(33)", "local(64)", "local(65)", "local(96)",
                           "local(129)", "row(1)", "row(16)", "row(64)", "row(100)", "row(128)",
                           "row(129)", "row(192)", "local(128), row(64)"}) {
    expect_right<bf16>(spec, {1, 453, 2, 64, 64});
    expect_right<fp16>(spec, {2, 333, 2, 32, 32});
    expect_right<bf16>(spec, {1, 301, 2, 64, 128});
  }
  expect_right<bf16>("local(128)", {1, 400, 3, 32, 32});
  expect_right<bf16>("local(128), local(128), row(64), row(64)", {1, 400, 4, 32, 32});
  expect_right<fp16>("local(100)", {2, 400, 2, 40, 120});
}

// Thread blocks take runs of several tiles of each sequence, and all of it.
TEST_F(AttentionSm90Gpu, IsRightInLongRuns) {
  expect_right<bf16>("local(128)", {1, 1500, 20, 16, 16});
  expect_right<bf16>("local(128)", {2, 1000, 20, 32, 32});
  expect_right<fp16>("row(100)", {2, 700, 20, 16, 16});
  expect_right<bf16>("local(96)", {5, 450, 30, 16, 72});
}

TEST_F(AttentionSm90Gpu, LengthsAroundATile) {
  for (const std::int64_t length : {1, 63, 64, 65, 127, 128, 129, 191, 192, 193})
    for (const char* spec : {"fixed(32, 8)", "local(128)", "row(32)"})
      expect_right<bf16>(spec, {1, length, 1, 64, 64});
}

}  // namespace

}  // namespace longstride::ops::cuda
