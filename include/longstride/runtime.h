// The machine and this build.
#pragma once

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

namespace longstride {

inline constexpr const char* kVersion = "0.1.0";

// 0: LONGSTRIDE_NUM_THREADS, OMP_NUM_THREADS, else the cores this process may use.
void use_threads(int threads);
int used_threads();

struct Fact {
  std::string name, value;
};
// Processor, instruction set, cores, memory, libraries, what is built in, GPUs or why there is
// none, environment in force.
std::vector<Fact> doctor();

// Where the time of training steps goes: seconds by operation, since profiling was switched on or
// the profile was last taken, the longest first. set_profiling(true) starts from nothing.
struct ProfileRow {
  const char* name = nullptr;
  double seconds = 0;
  std::int64_t calls = 0;
};
void set_profiling(bool on);
std::vector<ProfileRow> take_profile();

// Times on this machine, one row each, beside what the machine can do (measured in the same run).
struct BenchRow {
  std::string series;           // "attention strided(sqrt N)", "linear"
  std::string shape;            // "N 4096"
  double size = 0;              // what the series varies: N; 0: nothing
  double seconds = 0;           // of one call, the fastest of several
  double flops = 0, bytes = 0;  // needed work and least traffic of one call
  double tile_flops = 0;        // work done, where tiles compute unkept pairs as well; 0: flops
  bool bf16 = false;            // held against peak_bf16_flops
};
// seconds ~ size^exponent over the rows of one series and precision (least squares of the
// logarithms).
struct BenchFit {
  std::string series;
  double exponent = 0;
};
struct BenchReport {
  double peak_flops = 0;       // a second; f32 matrix product
  double peak_bf16_flops = 0;  // a second; bf16 matrix product
  double peak_bytes = 0;       // a second; copy, bytes read + written
  std::vector<BenchRow> rows;
  std::vector<BenchFit> fits;
};

// The least time that the machine of `report` could take for the row: the larger of needed flops
// over the peak of its precision and least bytes over the copy peak. A row whose arrays stay in
// cache may beat its memory bound.
struct BenchFloor {
  double seconds = 0;
  bool memory_binds = false;
};
BenchFloor floor_of(const BenchRow& row, const BenchReport& report);

// The fits of each series and precision with two sizes or more; bf16 ones end in ", bf16".
std::vector<BenchFit> fit_exponents(const std::vector<BenchRow>& rows);

BenchReport bench_peaks();  // no rows

struct AttentionBenchOptions {
  bool f32 = true, bf16 = true;  // one row each, at least one
  // Growth: forward + backward, B 1, H 4, D 64, for N = min_length, 2 min_length, ..., max_length:
  // strided(round(sqrt N)), and dense up to 8192; in the first precision.
  bool growth = true;
  std::int64_t min_length = 1024, max_length = 65536;
  // Parts: forward and backward of each part and pattern of the paper; dense, whose work grows with
  // the square, at a length of its own.
  bool parts = true;
  std::int64_t batch = 1, heads = 8, length = 12288, width = 64;  // width: of one head
  std::int64_t stride = 128, summary = 32;                        // fixed(stride, summary)
  std::int64_t dense_length = 4096;
};
// Throws invalid_argument unless 2 <= min_length <= max_length <= 2^24, all sizes are positive and
// of a size that memory could hold, heads is even and stride a multiple of summary.
BenchReport bench_attention(const AttentionBenchOptions& options);
// Every operation of a layer at the shapes of small models, in f32 and bf16.
BenchReport bench_ops();

}  // namespace longstride
