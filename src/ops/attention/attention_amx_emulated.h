// The tile unit in plain C++, and with it the list of what a unit offers. The unit of the processor
// (attention_amx_x86.h) has the same functions; kernels are templates over either.
//
// A vector has 16 lanes of 32 bits: F floats, W pairs of bf16 (the lower half first). A tile is 16
// vectors; product() is TDPBF16PS: c[m][n] += sum_k a[m][2k] b[k][2n] + a[m][2k+1] b[k][2n+1].
// A product of two bf16 is exact in float, so only sums round, to nearest, in both units; as the
// instruction does, even and odd terms are summed apart from zero and then added to c. What
// differs: the instruction takes denormals as zero and gives none; the vector code has fused
// multiply-adds there, separate ones here.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>

#include "tensor/bf16.h"

namespace longstride::ops::cpu {

inline constexpr int kSide = 16;   // rows of a tile, and its 32-bit columns
inline constexpr int kPairs = 32;  // bf16 of a tile row

// 16 rows of 64 bytes: float [16][16] or bf16 [16][32].
struct TileData {
  alignas(64) unsigned char byte[1024];
  unsigned char* row(std::int64_t r) { return byte + 64 * r; }
  const unsigned char* row(std::int64_t r) const { return byte + 64 * r; }
};

// 2^x for x in [0, 1): 1 + x (c1 + x (c2 + ...)), exact at 0, else within 8.3e-8 of it (Remez).
inline constexpr float kExp2[5] = {6.931513118e-01f, 2.401644502e-01f, 5.579991311e-02f,
                                   9.017030316e-03f, 1.867130072e-03f};

class EmulatedUnit {
 public:
  struct F {
    float x[kSide];
  };
  struct W {
    std::uint32_t x[kSide];
  };

  // Vectors: memory.
  static F load(const void* from) { return copy<F>(from, sizeof(F)); }
  static F load_some(const float* from, int count) { return copy<F>(from, size_of(count, 4)); }
  static void store(void* to, F v) { std::memcpy(to, &v, sizeof(F)); }
  static void store_some(float* to, F v, int count) { std::memcpy(to, &v, size_of(count, 4)); }
  static W load_words(const void* from) { return copy<W>(from, sizeof(W)); }
  static W load_pairs(const bf16* from, int count) { return copy<W>(from, size_of(count, 2)); }
  static void store_words(void* to, W v) { std::memcpy(to, &v, sizeof(W)); }
  static F load_bf16(const bf16* from, int count) {
    F v{};
    for (int i = 0; i < count; ++i) v.x[i] = static_cast<float>(from[i]);
    return v;
  }
  static void store_bf16(bf16* to, F v, int count) {
    for (int i = 0; i < count; ++i) to[i] = bf16(v.x[i]);
  }

  // Vectors: arithmetic. max() may drop a NaN.
  static F set(float x) {
    return each([&](int) { return x; });
  }
  static F add(F a, F b) {
    return each([&](int i) { return a.x[i] + b.x[i]; });
  }
  static F sub(F a, F b) {
    return each([&](int i) { return a.x[i] - b.x[i]; });
  }
  static F mul(F a, F b) {
    return each([&](int i) { return a.x[i] * b.x[i]; });
  }
  static F mul_add(F a, F b, F c) {
    return each([&](int i) { return a.x[i] * b.x[i] + c.x[i]; });
  }
  static F max(F a, F b) {
    return each([&](int i) { return a.x[i] > b.x[i] ? a.x[i] : b.x[i]; });
  }
  static F exp2(F v) {
    return each([&](int i) {
      const float t = v.x[i];
      if (!(t > -150)) return std::isnan(t) ? t : 0;
      if (t >= 128) return std::numeric_limits<float>::infinity();
      const float whole = std::floor(t), r = t - whole;
      float y = kExp2[4];
      for (int k = 3; k >= 0; --k) y = y * r + kExp2[k];
      return std::ldexp(y * r + 1, static_cast<int>(whole));
    });
  }

  // Bit i of a mask is lane i.
  static F where(std::uint32_t mask, F yes, F no) {
    return each([&](int i) { return mask >> i & 1 ? yes.x[i] : no.x[i]; });
  }
  static std::uint32_t greater(F a, F b) {
    return bits([&](int i) { return a.x[i] > b.x[i]; });
  }
  // from[i] <= at < to[i]
  static std::uint32_t inside(const std::int32_t* from, const std::int32_t* to, std::int32_t at) {
    return bits([&](int i) { return from[i] <= at && at < to[i]; });
  }
  static bool not_finite(W v) {
    const auto wild = [](std::uint32_t half) { return (half & 0x7f80) == 0x7f80; };
    return bits([&](int i) { return wild(v.x[i]) || wild(v.x[i] >> 16); }) != 0;
  }

  // Lane r of the result is of row r.
  static F row_max(const TileData& t) { return by_row(t, max); }
  static F row_sum(const TileData& t) { return by_row(t, add); }

  // bf16 of low, then of high | of lane i of even and of odd beside each other.
  static W pack(F low, F high) {
    W v;
    for (int i = 0; i < kSide; i += 2) {
      v.x[i / 2] = pair(low.x[i], low.x[i + 1]);
      v.x[8 + i / 2] = pair(high.x[i], high.x[i + 1]);
    }
    return v;
  }
  static W zip(F even, F odd) {
    W v;
    for (int i = 0; i < kSide; ++i) v.x[i] = pair(even.x[i], odd.x[i]);
    return v;
  }
  // Word i of a beside word i of b: words 0 to 15 in low, 16 to 31 in high.
  static void zip_words(W a, W b, W& low, W& high) {
    std::uint16_t x[2][kPairs], zipped[2 * kPairs];
    std::memcpy(x[0], &a, sizeof(W));
    std::memcpy(x[1], &b, sizeof(W));
    for (int i = 0; i < 2 * kPairs; ++i) zipped[i] = x[i % 2][i / 2];
    std::memcpy(&low, zipped, sizeof(W));
    std::memcpy(&high, zipped + kPairs, sizeof(W));
  }
  // to[r][c] = rows[c][r], in 32-bit lanes.
  static void transpose(const W* rows, TileData& to) {
    for (int r = 0; r < kSide; ++r)
      for (int c = 0; c < kSide; ++c) std::memcpy(to.row(r) + 4 * c, &rows[c].x[r], 4);
  }

  // Tiles. Between start() and finish() of a thread.
  void start() {}
  void finish() {}
  template <int kTile>
  void zero() {
    tile_[kTile] = {};
  }
  template <int kTile>
  void load_tile(const TileData& from) {
    tile_[kTile] = from;
  }
  template <int kTile>
  void store_tile(TileData& to) {
    to = tile_[kTile];
  }
  template <int kC, int kA, int kB>
  void product() {
    for (int m = 0; m < kSide; ++m) {
      F even{}, odd{};
      const W a = load_words(tile_[kA].row(m));
      for (int k = 0; k < kSide; ++k) {
        const W b = load_words(tile_[kB].row(k));
        even = mul_add(set(low_half(a.x[k])), each([&](int n) { return low_half(b.x[n]); }), even);
        odd = mul_add(set(high_half(a.x[k])), each([&](int n) { return high_half(b.x[n]); }), odd);
      }
      store(tile_[kC].row(m), add(load(tile_[kC].row(m)), add(even, odd)));
    }
  }

 private:
  static std::size_t size_of(int count, std::size_t size) {
    return static_cast<std::size_t>(count) * size;
  }
  template <class V>
  static V copy(const void* from, std::size_t bytes) {
    V v{};
    std::memcpy(&v, from, bytes);
    return v;
  }
  template <class Lane>
  static F each(Lane lane) {
    F v;
    for (int i = 0; i < kSide; ++i) v.x[i] = lane(i);
    return v;
  }
  template <class Lane>
  static std::uint32_t bits(Lane lane) {
    std::uint32_t mask = 0;
    for (int i = 0; i < kSide; ++i) mask |= static_cast<std::uint32_t>(lane(i)) << i;
    return mask;
  }
  // As a processor does it, in halves.
  template <class Fold>
  static F by_row(const TileData& t, Fold fold) {
    F v;
    for (int r = 0; r < kSide; ++r) {
      F row = load(t.row(r));
      for (int half = kSide / 2; half > 0; half /= 2)
        row = fold(row, each([&](int i) { return row.x[(i + half) % kSide]; }));
      v.x[r] = row.x[0];
    }
    return v;
  }
  static std::uint32_t pair(float first, float second) {
    return bf16(first).bits | static_cast<std::uint32_t>(bf16(second).bits) << 16;
  }
  static float low_half(std::uint32_t pair) { return std::bit_cast<float>(pair << 16); }
  static float high_half(std::uint32_t pair) { return std::bit_cast<float>(pair & 0xffff0000u); }

  TileData tile_[8];
};

}  // namespace longstride::ops::cpu
