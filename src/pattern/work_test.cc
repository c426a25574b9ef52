// Counts that were derived by hand from the block structure of the published patterns.
#include "pattern/work.h"

#include <gtest/gtest.h>

#include <string>

#include "longstride/error.h"
#include "longstride/pattern.h"

namespace longstride {
namespace {

HeadWork work_of(const std::string& spec, std::int64_t length, std::int64_t block) {
  const AttentionPlan plan(parse_pattern(spec).heads(1), length);
  return count_work(plan.kinds[0], length, block);
}

TEST(Work, PublishedBlockCounts) {
  struct Case {
    std::string spec;
    std::int64_t length, block, blocks;
  };
  for (const Case& c : {
           Case{"dense", 12288, 32, 73920},
           {"fixed(128, 32)", 12288, 32, 19200},
           {"local(128)", 12288, 32, 1910},
           {"column(128)", 12288, 32, 768},
           {"dense", 3072, 32, 4656},
           {"local(96)", 3072, 32, 378},
           {"column(96)", 3072, 32, 96},
           {"dense", 65536, 64, 524800},
           {"local(256)", 65536, 64, 5110},
           {"column(256)", 65536, 64, 2560},
           {"dense", 262144, 64, 8390656},
           {"local(512)", 262144, 64, 36828},
           {"column(512)", 262144, 64, 18432},
           {"local(1024)", 1048576, 64, 278392},
           {"column(1024)", 1048576, 64, 139264},
       })
    EXPECT_EQ(work_of(c.spec, c.length, c.block).blocks, c.blocks) << c.spec << " " << c.length;
}

TEST(Work, SumsByFormula) {
  const HeadWork dense = work_of("dense", 1000, 32);
  EXPECT_EQ(dense.pairs, 1000 * 1001 / 2);
  EXPECT_DOUBLE_EQ(dense.density, 1);
  EXPECT_EQ(dense.read_keys, 1000);
  EXPECT_EQ(dense.cache_keys, 1000);

  // 96 rows of 128, each with its own triangle and 32 keys of each row before.
  const HeadWork fixed = work_of("fixed(128, 32)", 12288, 32);
  EXPECT_EQ(fixed.pairs, 96 * (128 * 129 / 2) + 128 * 32 * (96 * 95 / 2));
  EXPECT_EQ(fixed.read_keys, 128 + 95 * 32);
  EXPECT_EQ(fixed.cache_keys, 128 + 95 * 32);

  // 128 keys behind, and every 128th before them; the window is a ring, the columns are all kept.
  const HeadWork strided = work_of("strided(128)", 12288, 32);
  EXPECT_EQ(strided.read_keys, 128 + 95);
  EXPECT_EQ(strided.cache_keys, 128 + 12288);
}

TEST(Work, MaskedUnionsCountOnce) {
  // Multiples of 8 or 12 back, of each residue: 64 + 43 - 22 distances below 512.
  const HeadWork both = work_of("column(8) + column(12)", 512, 32);
  std::int64_t pairs = 0;
  for (std::int64_t distance = 0; distance < 512; ++distance)
    if (distance % 8 == 0 || distance % 12 == 0) pairs += 512 - distance;
  EXPECT_EQ(both.pairs, pairs);
  EXPECT_EQ(both.read_keys, 64 + 43 - 22);
}

TEST(Work, Cost) {
  const HeadCost c = cost(1000, 100, 16, 32, 2);
  EXPECT_DOUBLE_EQ(c.forward_flops, 2 * 48 * 1000);
  EXPECT_DOUBLE_EQ(c.backward_flops, 2 * (48 + 64) * 1000);
  EXPECT_DOUBLE_EQ(c.forward_bytes, 100 * 2 * (16 + 16 + 32 + 32));
  EXPECT_DOUBLE_EQ(c.backward_bytes, 100 * 2 * (4 * 16 + 4 * 32));
}

TEST(Work, RefusesAnEmptyBlock) { EXPECT_THROW(work_of("dense", 8, 0), Error); }

}  // namespace
}  // namespace longstride
