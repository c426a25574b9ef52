// The tile unit of the processor: AMX tiles and AVX-512 vectors. What each function does is said in
// attention_amx_emulated.h. To be included where these instruction sets are switched on, after all
// other headers (attention_amx_x86.cc).
#pragma once

#include <immintrin.h>

#include "ops/attention/attention_amx_emulated.h"

namespace longstride::ops::cpu {

class AmxUnit {
 public:
  using F = __m512;
  using W = __m512i;

  static F load(const void* from) { return _mm512_loadu_ps(from); }
  static F load_some(const float* from, int count) {
    return _mm512_maskz_loadu_ps(first16(count), from);
  }
  static void store(void* to, F v) { _mm512_storeu_ps(to, v); }
  static void store_some(float* to, F v, int count) {
    _mm512_mask_storeu_ps(to, first16(count), v);
  }
  static W load_words(const void* from) { return _mm512_loadu_si512(from); }
  static W load_pairs(const bf16* from, int count) {
    return _mm512_maskz_loadu_epi16(first32(count), from);
  }
  static void store_words(void* to, W v) { _mm512_storeu_si512(to, v); }
  static F load_bf16(const bf16* from, int count) {
    const __m256i half = _mm256_maskz_loadu_epi16(first16(count), from);
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(half), 16));
  }
  static void store_bf16(bf16* to, F v, int count) {
    _mm256_mask_storeu_epi16(to, first16(count), (__m256i)_mm512_cvtneps_pbh(v));
  }

  static F set(float x) { return _mm512_set1_ps(x); }
  static F add(F a, F b) { return _mm512_add_ps(a, b); }
  static F sub(F a, F b) { return _mm512_sub_ps(a, b); }
  static F mul(F a, F b) { return _mm512_mul_ps(a, b); }
  static F mul_add(F a, F b, F c) { return _mm512_fmadd_ps(a, b, c); }
  static F max(F a, F b) { return _mm512_max_ps(a, b); }
  // 2^x = 2^floor(x) 2^(x - floor(x)); both instructions know NaN, infinities and underflow.
  static F exp2(F v) {
    const F r = _mm512_reduce_ps(v, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC);
    F y = set(kExp2[4]);
    y = mul_add(y, r, set(kExp2[3]));
    y = mul_add(y, r, set(kExp2[2]));
    y = mul_add(y, r, set(kExp2[1]));
    y = mul_add(y, r, set(kExp2[0]));
    y = mul_add(y, r, set(1));
    return _mm512_scalef_ps(y, v);
  }

  static F where(std::uint32_t mask, F yes, F no) {
    return _mm512_mask_blend_ps(static_cast<__mmask16>(mask), no, yes);
  }
  static std::uint32_t greater(F a, F b) { return _mm512_cmp_ps_mask(a, b, _CMP_GT_OQ); }
  static std::uint32_t inside(const std::int32_t* from, const std::int32_t* to, std::int32_t at) {
    const W x = _mm512_set1_epi32(at);
    const __mmask16 begun = _mm512_cmple_epi32_mask(load_words(from), x);
    return _mm512_mask_cmplt_epi32_mask(begun, x, load_words(to));
  }
  static bool not_finite(W v) {
    const W exponent = _mm512_set1_epi16(0x7f80);
    return _mm512_cmpeq_epi16_mask(_mm512_and_si512(v, exponent), exponent) != 0;
  }

  static F row_max(const TileData& t) { return by_row<false>(t); }
  static F row_sum(const TileData& t) { return by_row<true>(t); }

  static W pack(F low, F high) { return (W)_mm512_cvtne2ps_pbh(high, low); }
  static W zip(F even, F odd) { return _mm512_permutexvar_epi16(zip_index(0), pack(even, odd)); }
  static void zip_words(W a, W b, W& low, W& high) {
    low = _mm512_permutex2var_epi16(a, zip_index(0x100000), b);
    high = _mm512_permutex2var_epi16(a, zip_index(0x200010), b);
  }
  static void transpose(const W* rows, TileData& to) {
    W a[kSide], b[kSide];
#pragma GCC unroll 16
    for (int i = 0; i < kSide; ++i) a[i] = load_words(rows + i);
    transpose_halves(a, b);
#pragma GCC unroll 16
    for (int i = 0; i < kSide; ++i) store_words(to.row(i), b[i]);
  }

  // Palette 1, eight tiles of 16 rows of 64 bytes.
  void start() {
    struct alignas(64) {
      std::uint8_t palette, start_row, reserved[14];
      std::uint16_t columns[16];
      std::uint8_t rows[16];
    } config = {};
    config.palette = 1;
    for (int i = 0; i < 8; ++i) config.columns[i] = 64, config.rows[i] = kSide;
    asm volatile("ldtilecfg %0" ::"m"(config));
  }
  void finish() { asm volatile("tilerelease"); }
  template <int kTile>
  void zero() {
    asm volatile("tilezero %%tmm%c0" ::"i"(kTile));
  }
  template <int kTile>
  void load_tile(const TileData& from) {
    asm volatile("tileloadd (%1,%2,1), %%tmm%c0" ::"i"(kTile), "r"(&from), "r"(64L), "m"(from));
  }
  template <int kTile>
  void store_tile(TileData& to) {
    asm volatile("tilestored %%tmm%c1, (%2,%3,1)" : "=m"(to) : "i"(kTile), "r"(&to), "r"(64L));
  }
  template <int kC, int kA, int kB>
  void product() {
    asm volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(kC), "i"(kA), "i"(kB));
  }

 private:
  static __mmask16 first16(int count) {
    return static_cast<__mmask16>(count >= 16 ? 0xffff : (1u << count) - 1);
  }
  static __mmask32 first32(int count) { return count >= 32 ? 0xffffffffu : (1u << count) - 1; }
  // Lane i: i in the lower half, 16 + i in the upper one, plus `shift`.
  static W zip_index(int shift) {
    const W lane = _mm512_setr_epi32(0x100000, 0x110001, 0x120002, 0x130003, 0x140004, 0x150005,
                                     0x160006, 0x170007, 0x180008, 0x190009, 0x1a000a, 0x1b000b,
                                     0x1c000c, 0x1d000d, 0x1e000e, 0x1f000f);
    return _mm512_add_epi32(lane, _mm512_set1_epi32(shift));
  }
  // Four steps: pairs of lanes, of pairs, and of quarters twice.
  static void transpose_halves(W* a, W* b) {
#pragma GCC unroll 16
    for (int i = 0; i < kSide; i += 2) {
      b[i] = _mm512_unpacklo_epi32(a[i], a[i + 1]);
      b[i + 1] = _mm512_unpackhi_epi32(a[i], a[i + 1]);
    }
#pragma GCC unroll 16
    for (int i = 0; i < kSide; i += 4) {
      a[i] = _mm512_unpacklo_epi64(b[i], b[i + 2]);
      a[i + 1] = _mm512_unpackhi_epi64(b[i], b[i + 2]);
      a[i + 2] = _mm512_unpacklo_epi64(b[i + 1], b[i + 3]);
      a[i + 3] = _mm512_unpackhi_epi64(b[i + 1], b[i + 3]);
    }
#pragma GCC unroll 16
    for (int i = 0; i < 4; ++i) {
      b[i] = _mm512_shuffle_i32x4(a[i], a[i + 4], 0x88);
      b[i + 4] = _mm512_shuffle_i32x4(a[i], a[i + 4], 0xdd);
      b[i + 8] = _mm512_shuffle_i32x4(a[i + 8], a[i + 12], 0x88);
      b[i + 12] = _mm512_shuffle_i32x4(a[i + 8], a[i + 12], 0xdd);
    }
#pragma GCC unroll 16
    for (int i = 0; i < 8; ++i) {
      a[i] = _mm512_shuffle_i32x4(b[i], b[i + 8], 0x88);
      a[i + 8] = _mm512_shuffle_i32x4(b[i], b[i + 8], 0xdd);
    }
#pragma GCC unroll 16
    for (int i = 0; i < kSide; ++i) b[i] = a[i];
  }
  template <bool kSum>
  static F by_row(const TileData& t) {
    W a[kSide], b[kSide];
#pragma GCC unroll 16
    for (int i = 0; i < kSide; ++i) a[i] = load_words(t.row(i));
    transpose_halves(a, b);
#pragma GCC unroll 16
    for (int half = kSide / 2; half > 0; half /= 2)
#pragma GCC unroll 16
      for (int i = 0; i < half; ++i) {
        const F x = _mm512_castsi512_ps(b[i]), y = _mm512_castsi512_ps(b[i + half]);
        b[i] = _mm512_castps_si512(kSum ? add(x, y) : max(x, y));
      }
    return _mm512_castsi512_ps(b[0]);
  }
};

}  // namespace longstride::ops::cpu
