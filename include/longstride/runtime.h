// The machine and this build.
#pragma once

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

namespace longstride {

inline constexpr const char* kVersion = "0.1.0";

void use_threads(int threads);  // 0: LONGSTRIDE_NUM_THREADS, OMP_NUM_THREADS, else all cores
int used_threads();

struct Fact {
  std::string name, value;
};
std::vector<Fact>
doctor();  // processor, instruction set, cores, memory, libraries, what is built in

// Times the operations on this machine; one row each.
struct BenchRow {
  std::string name;
  double seconds = 0, flops = 0, bytes = 0;  // needed work and least traffic
};
struct BenchReport {
  double peak_flops = 0;  // f32 matrix product, this run
  double peak_bytes = 0;  // copy: bytes read + written a second, this run
  std::vector<BenchRow> rows;
};
BenchReport bench_attention(std::int64_t min_length,
                            std::int64_t max_length);  // strided(sqrt N), dense
BenchReport bench_ops();

}  // namespace longstride
