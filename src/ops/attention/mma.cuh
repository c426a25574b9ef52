// Tensor cores of sm_80 and later: asynchronous copies into shared memory, fragments of 16 x 16
// values (two bytes each) and the product of m16n8k16. Shared addresses are 32 bits wide.
//
// Fragments, lane = 4 g + c:  A (16 x 16): a0 = (g, 2c), a1 = (g + 8, 2c), a2 = (g, 2c + 8), a3 =
// (g + 8, 2c + 8), B (16 x 8): b0 = (2c, g), b1 = (2c + 8, g), C (16 x 8): (g, 2c), (g, 2c + 1),
// (g + 8, 2c), (g + 8, 2c + 1). Two values a register; so C rounded and packed is A.
#pragma once

#include <cstdint>

#include "device/number.cuh"

namespace longstride::ops::cuda {

__device__ inline std::uint32_t shared_address(const void* p) {
  return static_cast<std::uint32_t>(__cvta_generic_to_shared(p));
}

// 16 bytes; zeros where `valid` is false (`from` is then not read, but an address all the same).
__device__ inline void copy16(std::uint32_t to, const void* from, bool valid) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to),
               "l"(__cvta_generic_to_global(from)), "r"(valid ? 16 : 0)
               : "memory");
}
__device__ inline void copy8(std::uint32_t to, const void* from, bool valid) {
  asm volatile("cp.async.ca.shared.global [%0], [%1], 8, %2;" ::"r"(to),
               "l"(__cvta_generic_to_global(from)), "r"(valid ? 8 : 0)
               : "memory");
}
__device__ inline void copies_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
template <int kPending>
__device__ inline void copies_wait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kPending) : "memory");
}

// Four 8 x 8 matrices; lane l gives the address of row l % 8 of matrix l / 8.
__device__ inline void load_matrices(std::uint32_t (&r)[4], std::uint32_t at) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(at)
               : "memory");
}
__device__ inline void load_matrices_transposed(std::uint32_t (&r)[4], std::uint32_t at) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(at)
               : "memory");
}

// c += a b
template <class A>
__device__ void multiply_add(float (&c)[4], const std::uint32_t (&a)[4], std::uint32_t b0,
                             std::uint32_t b1);
template <>
__device__ inline void multiply_add<bf16>(float (&c)[4], const std::uint32_t (&a)[4],
                                          std::uint32_t b0, std::uint32_t b1) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
      "{%8, %9}, {%0, %1, %2, %3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
template <>
__device__ inline void multiply_add<fp16>(float (&c)[4], const std::uint32_t (&a)[4],
                                          std::uint32_t b0, std::uint32_t b1) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
      "{%8, %9}, {%0, %1, %2, %3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// `low` in the lower half.
template <class A>
__device__ std::uint32_t packed(float low, float high);
template <>
__device__ inline std::uint32_t packed<bf16>(float low, float high) {
  std::uint32_t r;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(r) : "f"(high), "f"(low));
  return r;
}
template <>
__device__ inline std::uint32_t packed<fp16>(float low, float high) {
  std::uint32_t r;
  asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(r) : "f"(high), "f"(low));
  return r;
}
template <class A>
__device__ float2 unpacked(std::uint32_t both) {
  A low, high;
  low.bits = static_cast<std::uint16_t>(both), high.bits = static_cast<std::uint16_t>(both >> 16);
  return {device::to_float(low), device::to_float(high)};
}

// Relative error 2^-22; exp2(-inf) = 0.
__device__ inline float fast_exp2(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

// Rows of kWidth values of two bytes in shared memory, pieces of 16 bytes exchanged so that the
// same piece of eight neighbouring rows lies in different banks. Byte offset of piece `p` of a row.
template <int kWidth>
__device__ constexpr std::uint32_t piece_at(int row, int p) {
  static_assert(kWidth == 16 || kWidth == 32 || kWidth % 64 == 0);
  const int swapped = kWidth == 16   ? p ^ (row >> 2 & 1)
                      : kWidth == 32 ? p ^ (row >> 1 & 3)
                                     : p ^ (row & 7);
  return static_cast<std::uint32_t>(row * kWidth * 2 + swapped * 16);
}

}  // namespace longstride::ops::cuda
