// What this machine and this build are, for `longstride doctor`.
#include "longstride/runtime.h"

#include <fmt/format.h>
#include <hwy/highway.h>
#include <omp.h>
#include <unistd.h>

#include <cstdlib>
#include <fstream>
#include <oneapi/dnnl/dnnl.hpp>
#include <thread>

#include "base/facts.h"
#include "base/threads.h"

namespace longstride {

namespace {

// The value of the first line "name : value" or "name: value" of a /proc file.
std::string field_of(const char* file, const std::string& name) {
  std::ifstream in(file);
  for (std::string line; std::getline(in, line);) {
    if (!line.starts_with(name)) continue;
    const std::size_t value = line.find_first_not_of(" \t:", name.size());
    return value == std::string::npos ? "" : line.substr(value);
  }
  return "unknown";
}

std::string gigabytes(const std::string& kilobytes) {  // "16384 kB"
  const double kb = std::strtod(kilobytes.c_str(), nullptr);
  return kb > 0 ? fmt::format("{:.1f} GB", kb * 1024e-9) : "unknown";
}

// What Highway's dispatch picks: the best (lowest bit) of those compiled in and supported here.
std::string instruction_set() {
  const std::int64_t usable = hwy::SupportedTargets() & HWY_TARGETS;
  return usable == 0 ? "none" : hwy::TargetName(usable & -usable);
}

std::string dnnl_instruction_set() {
  switch (dnnl::get_effective_cpu_isa()) {
    case dnnl::cpu_isa::sse41:
      return "SSE4.1";
    case dnnl::cpu_isa::avx:
      return "AVX";
    case dnnl::cpu_isa::avx2:
      return "AVX2";
    case dnnl::cpu_isa::avx2_vnni:
      return "AVX2 VNNI";
    case dnnl::cpu_isa::avx512_core:
      return "AVX-512";
    case dnnl::cpu_isa::avx512_core_vnni:
      return "AVX-512 VNNI";
    case dnnl::cpu_isa::avx512_core_bf16:
      return "AVX-512 BF16";
    case dnnl::cpu_isa::avx512_core_amx:
      return "AMX";
    default:
      return "other";
  }
}

}  // namespace

void use_threads(int threads) { set_threads(threads); }

int used_threads() { return threads(); }

std::vector<Fact> environment_facts() {
  std::vector<Fact> facts;
  for (const char* name :
       {"LONGSTRIDE_NUM_THREADS", "OMP_NUM_THREADS", "OMP_PROC_BIND", "DNNL_MAX_CPU_ISA",
        "ONEDNN_MAX_CPU_ISA", "LONGSTRIDE_FAULT", "LONGSTRIDE_CUDA_SYNC",
        "LONGSTRIDE_CUDA_PORTABLE", "CUDA_VISIBLE_DEVICES", "NO_COLOR"})
    if (const char* value = std::getenv(name))
      facts.push_back({fmt::format("env {}", name), value});
  return facts;
}

std::vector<Fact> host_facts() {
  const dnnl_version_t* dnnl = dnnl_version();
#ifdef __OPTIMIZE__
  constexpr const char* kBuild = "optimised";
#else
  constexpr const char* kBuild = "not optimised";
#endif
  return {
      {"longstride", kVersion},
      {"processor", field_of("/proc/cpuinfo", "model name")},
      {"instruction set", instruction_set()},
      {"instruction set of oneDNN", dnnl_instruction_set()},
      {"cores", std::to_string(std::thread::hardware_concurrency())},
      {"threads", std::to_string(threads())},
      {"memory", gigabytes(field_of("/proc/meminfo", "MemTotal"))},
      {"memory free", gigabytes(field_of("/proc/meminfo", "MemAvailable"))},
      {"page size", std::to_string(sysconf(_SC_PAGESIZE))},
      {"oneDNN", fmt::format("{}.{}.{}", dnnl->major, dnnl->minor, dnnl->patch)},
      {"Highway", fmt::format("{}.{}.{}", HWY_MAJOR, HWY_MINOR, HWY_PATCH)},
      {"OpenMP", std::to_string(_OPENMP)},
      {"fmt", std::to_string(FMT_VERSION)},
      {"compiler", fmt::format("g++ {}", __VERSION__)},
      {"build", kBuild},
  };
}

}  // namespace longstride
