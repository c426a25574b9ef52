#include "ops/attention/decode.h"

#include <gtest/gtest.h>

#include "ops/attention/attention_test_util.h"

namespace longstride::ops {

namespace {

using test::Problem;
using test::Shape;

using DecodeTest = test::OneThread;

// Decodes every position out of a growing cache and wants the bits of one pass over all.
template <class T>
void expect_bits_of_attention(const AttentionPlan& plan, const Shape& shape, std::uint64_t seed) {
  SCOPED_TRACE(test::name_of(plan));
  SCOPED_TRACE(testing::Message() << "d " << shape.qk_width << ", " << shape.v_width);
  const Problem<T> problem(plan, shape, seed, 2);
  const std::vector<T> want = problem.run().out;
  KvCache<T> cache(plan, shape.heads, shape.qk_width, shape.v_width);
  const std::int64_t row = shape.heads * shape.v_width;
  for (Position i = 0; i < shape.length; ++i) {
    cache.store(i, problem.k.heads.at(0, i, 0), problem.v.heads.at(0, i, 0));
    auto out = test::poisoned<T>(row);
    decode({&cache, i, problem.q.heads.at(0, i, 0), out.data(), problem.scale});
    const std::vector<T> whole(want.begin() + i * row, want.begin() + (i + 1) * row);
    ASSERT_TRUE(test::same_bits(out, whole)) << "position " << i;
  }
}

TEST_F(DecodeTest, HasTheBitsOfAttentionForEachPart) {
  std::int64_t width = 8;
  for (const std::string& spec : test::typical_specs()) {
    const AttentionPlan plan = test::plan_of(spec, 2, 161);
    expect_bits_of_attention<float>(plan, {1, 150, 2, width, 88 - width}, 1);
    expect_bits_of_attention<double>(plan, {1, 150, 2, width, 88 - width}, 1);
    width += 5;
  }
}

TEST_F(DecodeTest, HasTheBitsOfAttentionForRandomUnions) {
  test::Dice dice(11);
  for (std::uint64_t seed = 0; seed < 200; ++seed) {
    const std::int64_t length = dice.in(1, 170), heads = dice.in(1, 3);
    std::vector<HeadPattern> kinds;
    for (std::int64_t h = 0; h < heads; ++h) kinds.push_back(test::random_head(dice));
    const AttentionPlan plan(kinds, length + dice.in(0, 30));
    const Shape shape{1, length, heads, dice.in(1, 40), dice.in(1, 80)};
    expect_bits_of_attention<float>(plan, shape, seed);
    if (seed % 4 == 0) expect_bits_of_attention<double>(plan, shape, seed);
  }
}

TEST_F(DecodeTest, HasTheBitsOfAttentionOnEachInstructionSet) {
  test::for_each_target([] {
    test::Dice dice(12);
    for (std::uint64_t seed = 0; seed < 8; ++seed) {
      const AttentionPlan plan({test::random_head(dice), test::random_head(dice)}, 140);
      expect_bits_of_attention<float>(plan, {1, 137, 2, dice.in(1, 70), dice.in(1, 70)}, seed);
    }
  });
}

// Long rows are decoded on several threads.
TEST_F(DecodeTest, HasTheBitsOfAttentionOnThreads) {
  const AttentionPlan plan = test::plan_of("dense, local(700), column(2), row(900)", 4, 1100);
  for (const int threads : {1, 2, 4}) {
    set_threads(threads);
    expect_bits_of_attention<float>(plan, {1, 1100, 4, 80, 80}, 3);
  }
}

TEST_F(DecodeTest, CacheHoldsWhatThePatternReadsAgain) {
  const AttentionPlan plan =
      test::plan_of("local(16), column(16), row(16), summary(16, 4, 0)", 4, 256);
  const KvCache<float> cache(plan, 4, 8, 4);
  std::int64_t slots = 0;
  for (const HeadPlan& kind : plan.kinds) slots += kind.parts[0].cache_slots();
  EXPECT_EQ(cache.bytes(), slots * (8 + 4) * 4);
  EXPECT_LT(slots, 2 * 256);
}

TEST_F(DecodeTest, BadArgumentsAreNamed) {
  const AttentionPlan plan = test::plan_of("dense", 2, 10);
  KvCache<float> cache(plan, 2, 4, 4);
  const std::vector<float> x(8);
  std::vector<float> out(8);
  const auto error_of = [](const auto& call) { return test::error_of(call); };
  EXPECT_EQ(error_of([&] {
              decode({&cache, 10, x.data(), out.data(), 1.0f});
            }),
            "decode: position 10, want 0 to 9");
  EXPECT_EQ(error_of([&] {
              decode({&cache, 0, nullptr, out.data(), 1.0f});
            }),
            "decode: q has no data");
  EXPECT_EQ(error_of([&] { decode(Decode<float>{.q = x.data(), .out = out.data()}); }),
            "decode: no cache");
  EXPECT_EQ(error_of([&] { cache.store(-1, x.data(), x.data()); }),
            "kv_cache: position -1, want 0 to 9");
  EXPECT_EQ(error_of([&] { KvCache<float>(plan, 3, 4, 4); }), "kv_cache: 3 heads, the plan has 2");
}

}  // namespace

}  // namespace longstride::ops
